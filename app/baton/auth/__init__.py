"""Who may do what: API keys for servers, tokens of one stream for browsers, tokens of an identity provider.

A credential is found in a request (`credentials`), and the gate (`gate`) finds out whose it is, by its form: a key of
the table (`keys`, of which each pod has a copy in its `ring`), a token that was signed here (`tokens`), or one that the
identity provider signed (`provider`). What it may do is its `principal`.

No request costs a query, or a fetch. What cannot be checked just now is no refusal, but `Unavailable`.
"""
