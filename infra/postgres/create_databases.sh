#!/usr/bin/env bash
# Makes a role and the databases of each server: prefect; mlflow and mlflow_auth. PostgreSQL's image runs it once, on an empty volume.
#
#   PREFECT_DB_PASSWORD=... MLFLOW_DB_PASSWORD=... infra/postgres/create_databases.sh
#
# Connects as libpq does (PGHOST, PGPORT, PGPASSWORD, or the local socket), as POSTGRES_USER. A role owns its own databases and sees
# no other's. Passwords reach psql by its environment, never by a command line.
set -euo pipefail
: "${PREFECT_DB_PASSWORD:?}" "${MLFLOW_DB_PASSWORD:?}"

psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "${POSTGRES_USER:-postgres}" --dbname postgres <<'SQL'
\getenv prefect_password PREFECT_DB_PASSWORD
\getenv mlflow_password MLFLOW_DB_PASSWORD
create role prefect login password :'prefect_password';
create role mlflow login password :'mlflow_password';
create database prefect owner prefect;
create database mlflow owner mlflow;
create database mlflow_auth owner mlflow;
revoke connect, temporary on database prefect, mlflow, mlflow_auth from public;
\connect prefect
create extension if not exists pg_trgm;
SQL
