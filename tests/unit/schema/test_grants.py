"""What `baton grants` prints, and which names it refuses."""

from __future__ import annotations

import pytest
from tests.support.commands import told

from baton.errors import ConfigurationError
from baton.schema import tables
from baton.schema.grants import GRANTS, Revocation, RoleNames
from baton.schema.grants_sql import script


@pytest.mark.parametrize("name", ["", "x" * 64, "ö" * 32, "a\nb", "a\0", "public", "none", "pg_monitor"])
def test_names_that_postgres_rejects_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be the name of a role"):
        RoleNames(work=name)


def test_names_of_roles_to_keep_are_validated() -> None:
    with pytest.raises(ConfigurationError, match="cannot be the name of a role"):
        Revocation(keep=("public",))


def test_one_role_for_two_services_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="same name"):
        RoleNames(work="same", serve="same")


def test_all_granted_columns_exist() -> None:
    columns = {table.name: set(table.columns.keys()) for table in tables.metadata.tables.values()}
    for grants in GRANTS.values():
        for grant in grants:
            assert set(grant.columns) <= columns.get(grant.on, set()), grant


def test_the_command_prints_the_sql() -> None:
    code, out, err = told("grants", "--serve", "pods", env={})
    assert (code, out, err) == (0, script(RoleNames(serve="pods")), "")
    code, out, err = told("grants", "--revoke-connect", "--keep", "a", "--keep", "b", "--lock-out-others", env={})
    assert (code, out, err) == (0, script(RoleNames(), Revocation(("a", "b"), lock_out_others=True)), "")
    code, out, err = told("grants", "--app", "shop", "--app", "wiki", env={})
    assert (code, out, err) == (0, script(RoleNames(), apps=("shop", "wiki")), "")
    assert told("grants", "--app", "public", env={})[0] == 2
    assert told("grants", "--keep", "a", env={})[0] == 2
    code, out, err = told("grants", "--serve", "public", env={})
    assert (code, out) == (2, "")
    assert err.startswith("baton: 'public' cannot be the name of a role")
