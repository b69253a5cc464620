"""Every route of the console: what it takes to be let in, and an address that changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from tests.plugins.conftest import RUN, STOPPED

NONE = "0" * 64
MASK = {"width": 16, "height": 16, "mask": "A" * 43 + "="}

LOOK, DECIDE, START, OPEN, METRICS = "look", "decide", "start", "open", "metrics"


@dataclass(frozen=True)
class Row:
    """One route: an address of it, what it takes to be let in, a body that changes nothing, and the answer to it."""

    path: str
    right: str
    example: str
    answer: int = 200
    body: dict[str, Any] | None = None
    method: str = "GET"

    @property
    def name(self) -> str:
        """Method and path, as the reference has them."""
        return f"{self.method} {self.path}"

    def address(self, run: dict[str, str]) -> str:
        """The example with the digests that the run has."""
        return self.example.format(final=run["final"], published=run["published"])


def post(path: str, right: str, answer: int, body: dict[str, Any] | None = None, example: str = "") -> Row:
    return Row(path, right, example or path, answer, body, "POST")


EDITOR = f"/editor/{NONE}"
ROWS = [
    Row("/", LOOK, "/", 303),
    Row("/overview", LOOK, "/overview"),
    Row("/runs", LOOK, "/runs?page=1"),
    Row("/runs/{run}", LOOK, f"/runs/{RUN}?state=held"),
    Row("/runs/{run}/retries", START, f"/runs/{RUN}/retries?state=held&cause=overcompletion"),
    Row("/compare", LOOK, f"/compare?a={quote(RUN)}&b={quote(STOPPED)}"),
    Row("/campaign", LOOK, "/campaign"),
    Row("/campaign/scenes/{scene}", LOOK, "/campaign/scenes/oak-window"),
    Row("/campaign/started/{run}", LOOK, f"/campaign/started/{RUN}", 303),
    Row("/live", LOOK, "/live?scene=oak"),
    Row("/products/{sku:path}", LOOK, "/products/LAMP-2"),
    Row("/review", LOOK, "/review?check=overcompletion"),
    Row("/review/queue", LOOK, f"/review/queue?after={NONE}&fresh=true"),
    Row("/review/decisions.csv", LOOK, "/review/decisions.csv"),
    Row("/review/images/{final}", LOOK, "/review/images/{final}"),
    Row("/review/selection", LOOK, "/review/selection?scene=oak"),
    Row("/editor/{final}", LOOK, f"/editor/{NONE}", 404),
    Row("/pictures/{digest}", LOOK, "/pictures/{published}?size=64"),
    Row("/artifacts/{digest}", LOOK, "/artifacts/{published}"),
    Row("/static/{file}", LOOK, "/static/console.css"),
    Row("/metrics", METRICS, "/metrics", 401),
    Row("/public/sheets/console.css", OPEN, "/public/sheets/console.css"),
    Row("/public/sheets/{token}", OPEN, "/public/sheets/forged.link", 403),
    Row("/public/sheets/{token}/{picture}", OPEN, f"/public/sheets/forged.link/{NONE}", 403),
    Row("/public/{channel}/feed.{format}", OPEN, "/public/google-merchant/feed.tsv"),
    Row("/public/{channel}/{scene}/{sku:path}", OPEN, "/public/web/oak/CUP-1"),
    post("/runs/{run}/cancel", START, 409, {"reason": "a"}, f"/runs/{RUN}/cancel"),
    post(
        "/runs/{run}/retries",
        START,
        409,
        {"state": "held", "cause": "overcompletion", "shots": 9},
        f"/runs/{RUN}/retries",
    ),
    post("/review/seats/{seat}/leave", LOOK, 204, example="/review/seats/abc/leave"),
    post("/review/decisions", DECIDE, 409, {"final": NONE, "choice": "approve", "reason": "a"}),
    post("/review/decisions/{decision}/undo", DECIDE, 409, example="/review/decisions/1/undo"),
    post(
        "/review/batches",
        DECIDE,
        409,
        {"run": "", "scene": "", "check": "", "fingerprint": "another", "choice": "approve", "reason": ""},
    ),
    post("/review/batches/{batch}/undo", DECIDE, 409, example=f"/review/batches/{'a' * 16}/undo"),
    post("/live/rollbacks", DECIDE, 409, {"publications": [99_999], "run": "", "reason": ""}),
    post("/live/sheets", DECIDE, 409, {"scene": "no-such", "channel": "", "run": "", "sku": "", "days": 7}),
    post("/editor/process", DECIDE, 204),
    post("/editor/{final}/open", DECIDE, 409, example=f"{EDITOR}/open"),
    post("/editor/{final}/answers", DECIDE, 409, {**MASK, "clicks": [[0.5, 0.5, 1]], "box": []}, f"{EDITOR}/answers"),
    post("/editor/{final}/cutouts", DECIDE, 409, MASK, f"{EDITOR}/cutouts"),
    *(
        post(
            path,
            START,
            409,
            {"scene": "no-such", "channels": [], "category": "", "skus": ["A"], "first": "", "last": ""},
        )
        for path in ("/campaign/forecasts", "/campaign/starts")
    ),
]
WRITES = [row for row in ROWS if row.method == "POST"]
LOGGED_IN = [row for row in ROWS if row.right not in (OPEN, METRICS)]
