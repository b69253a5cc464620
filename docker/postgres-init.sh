#!/bin/sh
# Runs once, when the volume is new: a role and a database for the ledger, and another pair for Airflow's metadata.
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
