#!/bin/sh
# Starts the built server as a homeserver of the Complement conformance suite, in the place of a container.
# docs/development.md says how to run the suite with it. Needs openssl, and PARLEY: the path of the built binary.
#
# The environment names the server (SERVER_NAME), its address (PROCDOCK_IP) and its directory (PROCDOCK_ROOT), which may be
# copied to another place between two starts: the configuration is made anew each time.
set -e
cd "$PROCDOCK_ROOT"
ca=$PROCDOCK_ROOT/complement/ca

printf 'subjectAltName=DNS:%s\n' "$SERVER_NAME" >tls.ext
openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=$SERVER_NAME" -keyout tls.key -out tls.csr 2>/dev/null
openssl x509 -req -days 30 -in tls.csr -extfile tls.ext -CA "$ca/ca.crt" -CAkey "$ca/ca.key" \
  -set_serial "0x$(openssl rand -hex 8)" -out tls.crt 2>/dev/null

cat >parley.yaml <<YAML
server_name: "$SERVER_NAME"
data_dir: data
listen: "$PROCDOCK_IP:8008"
tls:
  listen: "$PROCDOCK_IP:8448"
  certificate: tls.crt
  key: tls.key
log:
  level: ${PARLEY_COMPLEMENT_LOG:-info}
client_api:
  public_url: "http://$SERVER_NAME:8008"
  query_tokens: true
  rate_limits:
    enabled: false
users:
  registration: open
  registration_shared_secret: complement
  min_password_length: 1
  password_memory_kib: 64
  password_time: 1
rooms:
  find_colleagues: false
media:
  unauthenticated_downloads: true
  url_previews: true
outgoing:
  allow_private_addresses: true
federation:
  allow_private_addresses: true
  ca_file: "$ca/ca.crt"
  signatures: accept
YAML
exec "${PARLEY:?set it to the path of the built parley}" -config parley.yaml
