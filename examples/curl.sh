#!/usr/bin/env bash
# Use the endpoint with curl: list the models, request an answer, stream an answer.
set -euo pipefail

url=${OPENAI_BASE_URL:-http://127.0.0.1:8000/v1}
key=${OPENAI_API_KEY:-none}

# The key is read from a pipe: an argument could be seen in the list of processes.
ask() {
  curl --silent --show-error --fail-with-body --no-buffer \
    --config <(printf 'header = "Authorization: Bearer %s"\n' "$key") \
    --header 'Content-Type: application/json' "$@"
}

models=$(ask "$url/models")
model=$(sed -E 's/.*"data":\[\{"id":"([^"]*)".*/\1/' <<< "$models")
echo "model: $model"

ask "$url/chat/completions" --data "{
  \"model\": \"$model\",
  \"messages\": [{\"role\": \"user\", \"content\": \"What is the sea?\"}],
  \"max_tokens\": 60
}"
echo

# Each event is a line `data: {...}`; the last is `data: [DONE]`.
ask "$url/chat/completions" --data "{
  \"model\": \"$model\",
  \"messages\": [{\"role\": \"user\", \"content\": \"What is the sea?\"}],
  \"max_tokens\": 60,
  \"stream\": true
}"
