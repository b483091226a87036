#!/usr/bin/env bash
# Builds and starts compose.yaml with a file of keys, asks for a streamed answer, leaves one, starts more gateways, kills
# the one that drives the engine in the middle of another's stream, and then the engine's process, scales down and up
# under requests, and takes everything down.
# Needs Docker.
#
#   tests/stack/compose.sh          without a GPU
#   tests/stack/compose.sh gpu      with one
set -euo pipefail
cd "$(dirname "$0")/../.."

files=(-f compose.yaml)
if [[ ${1:-} == gpu ]]; then files+=(-f compose.override.yaml); fi
if docker compose version >/dev/null 2>&1; then compose=(docker compose); else compose=(docker-compose); fi
compose+=("${files[@]}" -p bucketserve-test)
export PORT=${PORT:-18000}
url=http://127.0.0.1:$PORT
work=$(mktemp -d)

finish() {
  status=$?
  touch "$work/stop"
  if ((status)); then "${compose[@]}" logs --no-color --tail 40; fi
  "${compose[@]}" down --volumes --timeout 40
  rm -rf "$work"
  exit "$status"
}
trap finish EXIT

wait_for() {  # wait_for SECONDS COMMAND...: until it succeeds
  local seconds=$1; shift
  for _ in $(seq "$seconds"); do
    if "$@"; then return; fi
    sleep 1
  done
  echo "compose: not within $seconds s: $*" >&2
  return 1
}

is_ready() { curl -fsS "$url/ready" >/dev/null 2>&1; }

ask() {  # ask TOKENS [SECONDS]: a greedy answer, streamed; leaves after so long
  curl -fsSN --max-time "${2:-120}" "$url/v1/completions" -H "$authorization" -H 'content-type: application/json' -d '{
    "model": "'"${MODEL_NAME:-demo}"'", "prompt": "Once upon a time", "stream": true, "temperature": 0,
    "ignore_eos": true, "max_tokens": '"$1"'}'
}

text() {  # text FILE: what the stream says, if it is complete
  grep -q '^data: \[DONE\]' "$1" &&
    sed -nE 's/^data: .*"text": ?"(([^"\\]|\\.)*)".*/\1/p' "$1" | tr -d '\n'
}

gateways() {  # those running, by container id
  docker ps -q --filter label=com.docker.compose.project=bucketserve-test \
    --filter label=com.docker.compose.service=gateway
}

metric() {  # metric GATEWAY NAME: that gateway's figure, or nothing
  docker exec "$1" python3 -c 'import urllib.request as u; print(u.urlopen("http://127.0.0.1:8000/metrics").read().decode())' |
    awk -v name="bucketserve_$2" 'index($1, name) == 1 { sum += $2; found = 1 } END { if (found) print sum }'
}

are_healthy() {  # are_healthy COUNT: so many gateways run, and all are healthy
  local running; running=$(gateways)
  [[ $(wc -w <<<"$running") == "$1" ]] &&
    ! docker inspect --format '{{.State.Health.Status}}' $running | grep -qv '^healthy$'
}

scale() {  # scale COUNT: from now on so many gateways
  "${compose[@]}" up --detach --no-recreate --scale gateway="$1" >/dev/null 2>&1
  wait_for 120 are_healthy "$1"
}

has_no_rows() {  # has_no_rows GATEWAY: it drives the engine, and nothing runs there
  [[ $(metric "$1" running_rows) == 0 ]]
}

driver() {  # the gateway that drives the engine: the only one that knows its rows
  for gateway in $(gateways); do
    if [[ $(metric "$gateway" running_rows) ]]; then echo "$gateway"; fi
  done
}

kill_engine() {  # kill_engine CONTAINER: the engine's process there
  docker exec "$1" python3 -c '
import os, pathlib, signal
for folder in pathlib.Path("/proc").glob("[0-9]*"):
    if (folder / "cmdline").read_bytes().split(b"\0")[0].endswith(b"/triton_python_backend_stub"):
        os.kill(int(folder.name), signal.SIGKILL)'
}

"${compose[@]}" build
export KEYS_FILE=$work/keys.toml
authorization="authorization: Bearer $(docker run --rm bucketserve/gateway key tester 2>&1 >"$KEYS_FILE" | awk '{ print $NF }')"
"${compose[@]}" up --detach
wait_for 300 is_ready
curl -fsS "$url/ready"; echo
[[ $(curl -sS -o "$work/refused" -w '%{http_code}' "$url/v1/models") == 401 ]]
echo "compose: without a key nobody comes in"

answer=$(curl -fsSN --max-time 60 "$url/v1/chat/completions" -H "$authorization" -H 'content-type: application/json' -d '{
  "model": "'"${MODEL_NAME:-demo}"'", "stream": true, "max_tokens": 64,
  "messages": [{"role": "user", "content": "Tell me a short story about a fox."}]}')
echo "$answer"
grep -q '"content"' <<<"$answer"
grep -q '"finish_reason": *"\(stop\|length\)"' <<<"$answer"
grep -q '^data: \[DONE\]' <<<"$answer"
echo "compose: a streamed answer came through"

ask 1500 >"$work/alone"
text "$work/alone" >"$work/expected"

if ask 4000 2 >"$work/left" 2>&1; then false; fi
grep -q '"text"' "$work/left"
wait_for 30 has_no_rows "$(driver)"
[[ $(metric "$(driver)" disconnects_total) == 1 ]]
echo "compose: a client left in the middle of its stream, and its row is gone"

scale 3
for _ in $(seq 60); do curl -fsS "$url/v1/models" -H "$authorization" >/dev/null; done
for gateway in $(gateways); do
  served=$(metric "$gateway" 'http_responses_total{route="/v1/models"')
  echo "compose: gateway $gateway served ${served:-0} of 60 requests"
  ((${served:-0} > 0))
done

# A stream through a gateway that does not drive the engine; which one it reaches is chance.
leader=$(driver)
for _ in $(seq 20); do
  ask 1500 >"$work/disturbed" &
  stream=$!
  wait_for 30 test -s "$work/disturbed"
  [[ $(metric "$leader" streams) == 0 ]] && break
  wait "$stream"
done
docker kill "$leader" >/dev/null
before=$(grep -c '^data: ' "$work/disturbed")
kill -0 "$stream"
wait "$stream"
text "$work/disturbed" | cmp - "$work/expected"
echo "compose: the driver was killed after $before events of another gateway's stream, which came through the same" \
  "($(wc -c <"$work/expected") bytes); now $(driver) drives"

ask 1500 >"$work/disturbed" &
stream=$!
wait_for 30 test -s "$work/disturbed"
triton=$("${compose[@]}" ps -q triton)
begun=$(docker inspect --format '{{.State.StartedAt}}' "$triton")
kill_engine "$triton"
wait "$stream"
text "$work/disturbed" | cmp - "$work/expected"
[[ $(docker inspect --format '{{.State.StartedAt}}' "$triton") != "$begun" ]]
echo "compose: the engine's process was killed in the middle of a stream, which came through the same; Triton was started again"

scale 3
requests() {  # requests WORKER: one after the other until told to stop, a line each
  until [[ -e $work/stop ]]; do
    if ask 20 >"$work/stream.$1" && text "$work/stream.$1" >>"$work/answers.$1"; then
      echo >>"$work/answers.$1"
    else
      echo "compose: $(date +%T): a request failed" | tee -a "$work/failures"
    fi
  done
}
for worker in 1 2 3 4; do requests "$worker" & done
scale 1
scale 3
sleep 5
touch "$work/stop"
wait
[[ ! -s $work/failures ]]
[[ $(sort -u "$work"/answers.* | wc -l) == 1 ]]
echo "compose: $(cat "$work"/answers.* | wc -l) requests while scaling from 3 gateways to 1 and back, none lost"
