#!/bin/sh
# As root, once, before `docker compose up`: secrets and certificates for compose.yaml, owned by the user of its containers.
set -eu
cd "$(dirname "$0")"
[ "$(id -u)" = 0 ] || { echo "prepare.sh: must be root, since the files become those of uid 10400" >&2; exit 1; }
sh ../certificates.sh secrets node-1 node-2 node-3
cp ../config/access.toml secrets/access.toml
[ -e secrets/grafana-password ] || head -c 18 /dev/urandom | base64 >secrets/grafana-password
chmod 600 secrets/access.toml
chmod 711 secrets
chown 10400:10400 secrets/secret secrets/node.* secrets/access.toml secrets/prometheus.* secrets/operator.* secrets/engine.*
# Grafana's image runs as 472.
chown 472:0 secrets/grafana-password
chmod 400 secrets/grafana-password
echo "Grafana: user admin, password in $PWD/secrets/grafana-password"
