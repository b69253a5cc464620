#!/bin/sh
# Runs once, when the volume is new: a role and a database for the ledger, and another pair for Airflow's metadata.
# The ledger's owner migrates; `packshot_worker` does everything else, with the rights that `packshot up` grants.
set -eu
for name in packshot airflow; do
    case $name in
        packshot) password=$PACKSHOT_DATABASE_PASSWORD ;;
        airflow) password=$AIRFLOW_DATABASE_PASSWORD ;;
    esac
    psql -v ON_ERROR_STOP=1 -v name="$name" -v password="$password" --username postgres <<'SQL'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE CONNECT ON DATABASE :"name" FROM PUBLIC;
SQL
done
psql -v ON_ERROR_STOP=1 -v password="$WORKER_DATABASE_PASSWORD" --username postgres <<'SQL'
CREATE ROLE packshot_worker LOGIN PASSWORD :'password';
GRANT CONNECT ON DATABASE packshot TO packshot_worker;
SQL
