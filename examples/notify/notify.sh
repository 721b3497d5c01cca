#!/bin/sh
# Posts what it finds on its standard input, a JSON object, to NOTIFY_URL. With
# NOTIFY_AS=text it posts the sentence alone, as ntfy shows it:
#
#   NOTIFY_AS=text NOTIFY_URL=https://ntfy.sh/your-topic
#
# The object has that sentence as `text`, where chat webhooks look for it. For one
# that wants nothing else, write jq '{text}' in place of cat.
set -eu

body=$(mktemp)
trap 'rm -f -- "$body"' EXIT
if [ "${NOTIFY_AS:-json}" = text ]; then
	type='text/plain; charset=utf-8'
	printf '%s\n' "$DEVICE_FLOW_TEXT" >"$body"
else
	type=application/json
	cat >"$body"
fi

# At many services a webhook's address is a secret. It goes to curl through a
# pipe: in the command line, everybody on this machine could read it.
printf 'url = "%s"\n' "${NOTIFY_URL:?the address to post to}" |
	curl --config - --silent --show-error --fail --output /dev/null --max-time 20 \
		--header "Content-Type: $type" --data-binary "@$body"
