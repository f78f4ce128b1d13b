"""The campaigns' short forms; their long ones are programs beside this file."""

import kills
import mutations
import pytest


def test_damaged_files_are_refused_in_one_line_or_read_as_what_they_were(tmp_path):
    found = mutations.campaign(tmp_path, 400, seed=0)
    assert found["faults"] == []
    for name, kind in found["kinds"].items():
        assert kind.get("refused", 0) > 5, name
        assert not kind["hashed"] or "accepted" not in kind, name


@pytest.mark.timeout(600)
def test_commands_ended_anywhere_leave_the_old_or_the_new_and_end_as_the_unbroken_one(tmp_path):
    found = kills.campaign(tmp_path, 4, seed=3, names=("prepare over another", "report over another"))
    assert found["faults"] == [] and sum(found["ended"].values()) == 4
