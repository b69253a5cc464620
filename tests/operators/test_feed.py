"""Which files a run may be told to read as its feed: whoever may start one could else have any file's text repeated."""

from __future__ import annotations

import pytest

from operators.plan import PlanRefreshOperator
from pipelines.errors import UsageError


@pytest.mark.parametrize("feed", ["/proc/self/environ", "passwords.json", "/etc/passwd", "~/.netrc", "catalogue"])
def test_a_file_that_is_no_table_by_its_name_is_not_opened(feed: str) -> None:
    plan = PlanRefreshOperator(task_id="plan", feed=feed)
    with pytest.raises(UsageError, match=r"neither a manifest's digest nor a file in \.csv"):
        plan.lines(services=None, since=None)  # type: ignore[arg-type]  # nothing is asked of them
