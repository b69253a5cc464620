"""Airflow's api-server with the FAB auth manager: `python -m tests.plugins.fab_server PORT PASSWORD`.

It runs in an environment of its own, because the FAB provider wants an older python-dateutil than packshot. The
database that Airflow's configuration names has to be there, and may be empty.
"""

from __future__ import annotations

import subprocess
import sys

import uvicorn

FAB_ROLES = {"viewer": "Viewer", "merchandiser": "User", "op": "Op", "admin": "Admin"}
"""Accounts and their roles."""


def main(port: int, password: str) -> None:
    """Migrate, make the accounts, serve."""
    subprocess.run([sys.executable, "-m", "airflow", "db", "migrate"], check=True, stdout=subprocess.DEVNULL)
    from airflow.api_fastapi.app import create_app
    from airflow.providers.fab.www.app import create_app as create_flask_app

    flask = create_flask_app(enable_plugins=False)
    with flask.app_context():
        manager = flask.appbuilder.sm
        manager.sync_roles()
        for name, role in FAB_ROLES.items():
            user = manager.add_user(
                name, name, "of the tests", f"{name}@shop.example", manager.find_role(role), password
            )
            assert user, f"no account {name} was made"
    uvicorn.run(create_app(apps="all"), host="127.0.0.1", port=port, log_level="error")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
