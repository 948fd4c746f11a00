#!/bin/sh
# An authority, certificates and the secret of a cluster, for a trial or where there is no authority of your own.
#   certificates.sh FOLDER HOST...       HOST: address or name of a node, as others connect to it
# FOLDER/ca.crt ca.key, node.crt node.key (good for every HOST, as a server and as a client), a pair each for engine, operator
# and prometheus (the names of deploy/config/access.toml), and secret. What is there already stays, but node.crt and node.key
# are made anew: so a HOST is added by saying all of them again. Keep ca.key elsewhere: no node needs it.
set -eu
[ $# -ge 2 ] || { sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 2; }
umask 077
mkdir -p "$1"
cd "$1"
shift
DAYS=825

key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1"; }

sign() {  # sign NAME EXTENSIONS
  key "$1.key"
  openssl req -new -key "$1.key" -subj "/CN=$1" -out "$1.csr"
  printf '%s\n' "$2" >"$1.ext"
  openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days "$DAYS" -sha256 -extfile "$1.ext" -out "$1.crt" 2>/dev/null
  rm "$1.csr" "$1.ext"
}

if [ ! -e ca.key ]; then
  key ca.key
  openssl req -x509 -new -key ca.key -sha256 -days 3650 -subj "/CN=kvstore authority" \
    -addext "basicConstraints=critical,CA:TRUE,pathlen:0" -addext "keyUsage=critical,keyCertSign,cRLSign" -out ca.crt
fi
names=""
for host in "$@"; do
  case $host in
    *:*) kind=IP ;;  # of IPv6
    *[!0-9.]*) kind=DNS ;;
    *) kind=IP ;;
  esac
  names="${names:+$names,}$kind:$host"
done
sign node "subjectAltName=$names
extendedKeyUsage=serverAuth,clientAuth"
for name in engine operator prometheus; do
  [ -e "$name.key" ] || sign "$name" "subjectAltName=DNS:$name
extendedKeyUsage=clientAuth"
done
[ -e secret ] || head -c 32 /dev/urandom >secret
chmod 644 ./*.crt
