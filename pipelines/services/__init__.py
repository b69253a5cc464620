"""The services that packshot needs, run here without containers: Postgres 18, an S3 store (SeaweedFS) and Airflow.

`up` starts or restarts what does not run, `down` stops it and keeps the data, `status` checks it. Everything is under
one folder, `Settings.state_dir`:

    services.json   ports and random credentials, drawn once (0600)
    environment     the same as PACKSHOT_* variables, for every later command (0600)
    postgres/ s3/ airflow/    data;   logs/    one file a service;   run/    one file a running process

A service whose address is already in the environment (PACKSHOT_DATABASE_URL, PACKSHOT_S3_ENDPOINT,
PACKSHOT_AIRFLOW_URL) is external: it is used and checked, never started or stopped. Embedded services listen on the
loopback interface only. They are meant for one machine and its user.
"""

from pipelines.services.airflow_server import airflow_environment
from pipelines.services.daemons import ServiceFailed
from pipelines.services.installation import Installation
from pipelines.services.lifecycle import DAEMONS, Service, Status, down, status, up

__all__ = [
    "DAEMONS",
    "Installation",
    "Service",
    "ServiceFailed",
    "Status",
    "airflow_environment",
    "down",
    "status",
    "up",
]
