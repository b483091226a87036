#!/usr/bin/env bash
# Builds and starts compose.yaml, asks for a streamed answer, and takes everything down.  Needs Docker.
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

finish() {
  status=$?
  if ((status)); then "${compose[@]}" logs --no-color --tail 40; fi
  "${compose[@]}" down --volumes --timeout 40
  exit "$status"
}
trap finish EXIT

"${compose[@]}" up --build --detach
for _ in $(seq 300); do
  curl -fsS "$url/ready" >/dev/null 2>&1 && break
  sleep 1
done
curl -fsS "$url/ready"; echo

answer=$(curl -fsSN --max-time 60 "$url/v1/chat/completions" -H 'content-type: application/json' -d '{
  "model": "'"${MODEL_NAME:-demo}"'", "stream": true, "max_tokens": 64,
  "messages": [{"role": "user", "content": "Tell me a short story about a fox."}]}')
echo "$answer"
grep -q '"content"' <<<"$answer"
grep -q '"finish_reason": *"\(stop\|length\)"' <<<"$answer"
grep -q '^data: \[DONE\]' <<<"$answer"
echo "compose: a streamed answer came through"
