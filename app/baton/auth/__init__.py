"""Access control: API keys for servers, tokens of one stream for browsers, tokens of an identity provider.

`credentials` finds the credential in a request, and `gate` checks it, by its form: an API key from the table (`keys`;
each pod has a copy in its `ring`), a token that a pod signed (`tokens`), or one of the identity provider (`provider`).
The result is a `Principal`, which says what the caller may do.

No request costs a query or a fetch. A credential that cannot be checked just now is not refused: the answer is
`Unavailable`.
"""
