#!/usr/bin/env bash
# A year of weather as it happened: fit the temperature on January, then learn every later hour in order, and print for each month the mean
# absolute error of the predictions that were made before the answer was known.
#
#   cargo run --release          # in another terminal
#   examples/learn_weather.sh [http://127.0.0.1:8080]
#
# It needs curl, awk, cut, split and sed, and makes the dataset `january` and the model `weather_online`, replacing those of the same name.
set -euo pipefail
cd "$(dirname "$0")"
server="${1:-http://127.0.0.1:8080}"
folder=$(mktemp -d)
trap 'rm -rf "${folder}"' EXIT

ask() { curl --silent --show-error --fail-with-body "$@"; }

# The columns in use, rows in which none of them is missing: an update, unlike a fit, refuses a row with a hole in it.
awk -F, 'NR == 1 || ($4 != "" && $5 != "" && $6 != "" && $10 != "")' nyc_weather.csv > "${folder}/complete"
columns=2,4,5,6,10
header=$(head -n 1 "${folder}/complete" | cut -d, -f "${columns}")

{ echo "${header}"; grep '^2013-01' "${folder}/complete" | cut -d, -f "${columns}"; } |
    ask --upload-file - "${server}/v1/datasets/january" > /dev/null
ask --request DELETE "${server}/v1/models/weather_online" > /dev/null 2>&1 || true
ask "${server}/v1/models/weather_online/fits" --data \
    '{"dataset": "january", "target": "temp", "online": {"forgetting_factor": 0.999}}' > /dev/null

echo 'month  rows  mean absolute error, °F'
for month in 02 03 04 05 06 07 08 09 10 11 12; do
    grep "^2013-${month}" "${folder}/complete" | cut -d, -f "${columns}" | split -l 500 - "${folder}/batch-"
    for batch in "${folder}"/batch-*; do
        { echo "${header}"; cat "${batch}"; } |
            ask "${server}/v1/models/weather_online/updates" --header 'Content-Type: text/csv' --data-binary @- |
            sed 's/.*"errors":\[\([^]]*\)\].*/\1/' | tr ',' '\n'
        echo
        rm "${batch}"
    done | awk -v month="${month}" 'NF { rows++; sum += $1 < 0 ? -$1 : $1 } END { printf "%5s %5d  %.3f\n", month, rows, sum / rows }'
done
ask --header 'Accept: text/plain' "${server}/v1/models/weather_online"
