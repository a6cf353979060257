#!/bin/sh
# Writes .env for docker-compose.yml, with new secrets: sh deploy/new-env.sh https://mcp.example.com
set -eu
cd "$(dirname "$0")/.."
[ $# -eq 1 ] || { echo "Name the address of the site: sh deploy/new-env.sh https://mcp.example.com" >&2; exit 1; }
umask 077
random() { head -c "$1" /dev/urandom | base64 | tr -d '\n' | tr '+/' '-_'; }
password() { head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n'; }
# noclobber: the keys of an installation are never lost by running this twice.
set -C
cat > .env <<END || { echo ".env is there already: keep its secrets, and change it by hand." >&2; exit 1; }
PUBLIC_URL=$1
SECRET_KEY=$(random 48)
ENCRYPTION_KEYS=k1:$(random 32)
LEDGER_SIGNING_KEYS=s1:$(random 32)
POSTGRES_PASSWORD=$(password)
DATABASE_OWNER_PASSWORD=$(password)
DATABASE_PASSWORD=$(password)
LEDGER_WRITER_PASSWORD=$(password)
LEDGER_SEALER_PASSWORD=$(password)
LEDGER_READER_PASSWORD=$(password)
REDIS_PASSWORD=$(password)
METRICS_TOKEN=$(password)
LEDGER_WITNESS_TOKEN=mcps_$(password)
END
echo "Written: .env. Keep a copy where secrets are kept: without ENCRYPTION_KEYS nobody can read what is stored."
