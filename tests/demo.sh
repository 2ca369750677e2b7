#!/usr/bin/env bash
# `make demo`: the whole path from a client to a row. Users, a gateway, a simulated vLLM, the collector, a private PostgreSQL with
# a made-up week of an office in it; Prometheus and Grafana where they are.
#
#   VLLM_URL       a model server of your own in place of the simulated one; VLLM_API_KEY when it wants a key
#   DATABASE_URL   a database for the rows instead of a private one, if you say yes when asked; no week is made up in it
#   DEMO_PULL=1    pull the images of deploy/images.txt that are used here: Kong, Prometheus, Grafana
#   KONG_IMAGE, PROMETHEUS_IMAGE, GRAFANA_IMAGE   other images than kong:3.9 and those of deploy/images.txt
#   DEMO_ONCE=1    end after printing, instead of waiting for Ctrl-C
#
# The gateway is a real Kong when Docker has the image or there is a `kong` command, else the project's nginx test host. Prometheus is
# that of Docker's image or of the command `prometheus`, Grafana that of Docker's image. Without Rust: deploy/demo/compose.yaml.
set -euo pipefail
cd "$(dirname "$0")/.."

demo=$PWD/.demo/$$
target=${CARGO_TARGET_DIR:-target}/debug
pids=()
containers=()
cluster=
gateway=
more=()

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then bold=$'\e[1m' plain=$'\e[0m'; else bold='' plain=''; fi
say() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
fatal() { echo "demo: $*" >&2; exit 1; }

# --- what runs, and its end ------------------------------------------------------------

cleanup() {
    trap - INT TERM
    [ -z "$gateway" ] || "$gateway" stop --prefix "$demo/gateway" || true
    [ ${#containers[@]} = 0 ] || docker rm -fv "${containers[@]}" >/dev/null || true
    local pid
    for pid in "${pids[@]}"; do
        { kill "$pid" 2>/dev/null && wait "$pid" 2>/dev/null; } || true
    done
    [ -z "$cluster" ] || as_server_user "$pg_bin/pg_ctl" -D "$cluster/data" -m fast -s stop || true
    rm -rf "$demo" ${cluster:+"$cluster"}
    rmdir .demo 2>/dev/null || true
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# PostgreSQL refuses to run as root.
server_user=$(id -un)
if [ "$(id -u)" -eq 0 ]; then
    server_user=nobody
    ! id postgres >/dev/null 2>&1 || server_user=postgres
fi
as_server_user() {
    if [ "$(id -u)" -eq 0 ]; then (cd / && runuser -u "$server_user" -- "$@"); else "$@"; fi
}

# Sets server, the private server's URL without a database.
start_postgresql() {
    local initdb port
    initdb=$(compgen -G '/usr/lib/postgresql/*/bin/initdb' | sort -V | tail -n 1)
    [ -n "$initdb" ] || fatal "no initdb under /usr/lib/postgresql"
    pg_bin=$(dirname "$initdb")
    cluster=$demo/postgresql
    mkdir -p "$cluster"
    chown "$server_user" "$cluster"
    # A clone below a home folder that is closed to others is no place for a server that runs as another user.
    if ! as_server_user test -w "$cluster"; then
        rm -rf "$cluster"
        cluster=$(mktemp -d /tmp/llm-demo.XXXXXX)
        chown "$server_user" "$cluster"
        echo "the server's user cannot reach this folder: its files are in $cluster"
    fi
    as_server_user "$pg_bin/initdb" -D "$cluster/data" -U postgres -A trust -E UTF8 --no-sync >/dev/null
    # Another program may take the port between looking and listening: then look again.
    for _ in 1 2 3 4 5; do
        port=$(free_port)
        if as_server_user "$pg_bin/pg_ctl" -D "$cluster/data" -s -w -l "$cluster/log" \
            -o "-p $port -k $cluster -c listen_addresses=127.0.0.1" start >/dev/null 2>&1; then
            server=postgres://postgres@127.0.0.1:$port
            return
        fi
    done
    cat "$cluster/log" >&2
    fatal "PostgreSQL does not start"
}

# The databases and roles of an installation. Connections from this host need no password here.
prepare_databases() {
    psql -q "$server/postgres" -v kong_password=none -v collector_password=none -v grafana_password=none -f deploy/postgresql/roles.sql >/dev/null
}

# A port that nobody listens on now; bash can connect, but not listen.
free_port() {
    local port
    while port=$((20000 + RANDOM % 20000)); is_taken "$port"; do :; done
    echo "$port"
}

is_taken() { (: <"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# port_or_free PORT - this one, if nobody listens there.
port_or_free() { if is_taken "$1"; then free_port; else echo "$1"; fi; }

# start NAME COMMAND… - in the background; sets address, where it says that it listens.
start() {
    local name=$1
    shift
    "$@" 2>"$demo/$name.log" &
    pids+=($!)
    for _ in $(seq 100); do
        address=$(sed -n 's/.*listening on \([0-9.]*:[0-9]*\).*/http:\/\/\1/p' "$demo/$name.log")
        [ -z "$address" ] || return 0
        kill -0 "${pids[-1]}" 2>/dev/null || break
        sleep 0.1
    done
    cat "$demo/$name.log" >&2
    fatal "$name does not start"
}

start_gateway() {
    gateway=$PWD/$1
    "$gateway" start --prefix "$demo/gateway" --proxy "127.0.0.1:$(port_or_free 8111)" --admin 127.0.0.1:0 --status 127.0.0.1:0 >"$demo/gateway.env" \
        2>"$demo/gateway.log" || { cat "$demo/gateway.log" >&2 && fatal "the gateway does not start"; }
    # Lines NAME=value.
    # shellcheck disable=SC1091
    . "$demo/gateway.env"
    export KONG_ADMIN_URL=$ADMIN_URL KONG_PROXY_URL=$PROXY_URL
}

# --- Docker ----------------------------------------------------------------------------

# image_of NAME - as deploy/images.txt has it, or the environment.
image_of() {
    local variable=${1^^}_IMAGE
    echo "${!variable:-$(grep -E "^([^#]*/)?$1:" deploy/images.txt)}"
}

has_image() { command -v docker >/dev/null && docker image inspect "$1" >/dev/null 2>&1; }

pull() {
    command -v docker >/dev/null || fatal "DEMO_PULL is set, and there is no docker command"
    # What the gateway is started from, too.
    KONG_IMAGE=$(image_of kong)
    export KONG_IMAGE
    local image
    for image in "$KONG_IMAGE" "$(image_of prometheus)" "$(image_of grafana)"; do
        has_image "$image" || docker pull "$image" || fatal "cannot pull $image; its name can be set: KONG_IMAGE, PROMETHEUS_IMAGE, GRAFANA_IMAGE"
    done
}

# in_docker NAME ARGUMENTS… - a container that ends with the demo.
in_docker() {
    containers+=("llm-demo-$$-$1")
    docker run -d --name "${containers[-1]}" --network host "${@:2}" >/dev/null || fatal "$1 does not start"
}

does_not_start() {
    if [ -e "$demo/$1.log" ]; then cat "$demo/$1.log" >&2; else docker logs --tail 20 "llm-demo-$$-$1" >&2 || true; fi
    fatal "$1 does not start"
}

answers() {
    for _ in $(seq 300); do
        ! curl -q -sf --noproxy '*' -o /dev/null --max-time 2 "$1" || return 0
        sleep 0.1
    done
    return 1
}

start_prometheus() {
    local image port url arguments
    image=$(image_of prometheus)
    has_image "$image" || command -v prometheus >/dev/null || return 0
    port=$(port_or_free 9090)
    url=http://127.0.0.1:$port
    cp -R deploy/prometheus "$demo/prometheus"
    sed -i -e "s|127\.0\.0\.1:8100|${STATUS_URL#*://}|" -e "s|127\.0\.0\.1:5000|${COLLECTOR_URL#*://}|" \
        -e "s|127\.0\.0\.1:8000|${VLLM_URL#*://}|" -e "s|127\.0\.0\.1:9090|127.0.0.1:$port|" "$demo/prometheus/prometheus.yml"
    arguments=(--config.file="$demo/prometheus/prometheus.yml" --web.listen-address="127.0.0.1:$port")
    if has_image "$image"; then
        chmod -R a+rX "$demo/prometheus"
        in_docker prometheus --tmpfs /prometheus:uid=65534 -v "$demo/prometheus:$demo/prometheus:ro" "$image" "${arguments[@]}" --storage.tsdb.path=/prometheus
    else
        prometheus "${arguments[@]}" --storage.tsdb.path="$demo/prometheus/data" 2>"$demo/prometheus.log" &
        pids+=($!)
    fi
    answers "$url/-/ready" || does_not_start prometheus
    more+=("prometheus $url")
    start_grafana "$url"
}

# Grafana with the dashboards: needs what Prometheus has, and the private PostgreSQL.
start_grafana() {
    local image port
    image=$(image_of grafana)
    if [ -z "$own_database" ] || ! has_image "$image"; then return 0; fi
    port=$(port_or_free 3000)
    in_docker grafana --tmpfs /var/lib/grafana:uid=472 -v "$PWD/grafana:/etc/gateway/grafana:ro" -v "$PWD/deploy/demo/password:/run/secrets/grafana-database-password:ro" \
        --env-file deploy/demo/grafana.env -e GF_SERVER_HTTP_ADDR=127.0.0.1 -e GF_SERVER_HTTP_PORT="$port" -e GATEWAY_PROMETHEUS_URL="$1" \
        -e GATEWAY_POSTGRES="${server#*@}" "$image"
    answers "http://127.0.0.1:$port/api/health" || does_not_start grafana
    export DEMO_SUPERUSER=$server/llm
    more+=("dashboards http://127.0.0.1:$port   (Grafana; nobody is asked for a password)")
}

# --- before anything is changed ----------------------------------------------------------

# A cargo that is missing or too old is said before anything is installed.
check_cargo() {
    local wanted have
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    have=$(cargo --version 2>/dev/null | cut -d ' ' -f 2) || have=''
    [ -n "$have" ] || fatal "there is no cargo: install Rust $wanted or newer (https://rustup.rs), or, with Docker and internet alone:  $without_rust"
    [ "$(printf '%s\n' "$wanted" "$have" | sort -V | head -n 1)" = "$wanted" ] ||
        fatal "cargo is $have, $wanted or newer is needed:  rustup update    Or, with Docker and internet alone:  $without_rust"
}
without_rust='docker compose -f deploy/demo/compose.yaml up'

# Rows of the demo in a database that somebody uses would be hard to get out again.
ask_for_database() {
    [ -n "${DATABASE_URL:-}" ] || return 0
    local answer=n
    if [ -t 0 ]; then
        read -r -p "DATABASE_URL is set. Shall the demo make its tables there, and write its calls into them? [y/N] " answer
    fi
    [[ ${answer,,} =~ ^y(es)?$ ]] || { echo "DATABASE_URL is left alone; the demo makes a PostgreSQL of its own" && unset DATABASE_URL; }
}

# --- steps -----------------------------------------------------------------------------

check_cargo
ask_for_database
own_database=
[ -n "${DATABASE_URL:-}" ] || own_database=yes
cat <<LINES
The gateway and all around it, on this machine: users, a gateway, ${VLLM_URL:-a simulated vLLM}, the collector, ${own_database:+a private }PostgreSQL.
The first time this installs what is missing through apt and builds for 3 to 15 minutes; after that it takes half a minute.
Everything ends with it; what stays is the folder target/ and what apt installed.
LINES
[ -z "${DEMO_PULL:-}" ] || pull
tests/tools.sh demo
real_kong=$(tests/kong/run.sh available) || { real_kong=; tests/tools.sh host; }
mkdir -p "$demo"
say "building"
cargo build --locked --package llm-collector --package gateway-tests --no-default-features --features gateway-tests/demo \
    --bin llm-collector --bin simulated-vllm --bin demo-week

if [ -n "$own_database" ] || [ -n "$real_kong" ]; then
    say "starting a private PostgreSQL"
    start_postgresql
    prepare_databases
fi
export DATABASE_URL=${DATABASE_URL:-$server/llm}
# Without one the collector tells nobody what he used.
COLLECTOR_TOKEN=$(od -An -N 16 -tx1 /dev/urandom | tr -d ' \n')
export COLLECTOR_TOKEN

if [ -z "${VLLM_URL:-}" ]; then
    say "starting the simulated vLLM (recorded answers, no model), the collector and the gateway"
    start simulated-vllm "$target/simulated-vllm" --listen 127.0.0.1:0
    VLLM_URL=$address
else
    say "starting the collector and the gateway, in front of $VLLM_URL"
fi
export VLLM_URL
start collector "$target/llm-collector" serve --listen 127.0.0.1:0 --data-dir "$demo/data"
export COLLECTOR_URL=$address
if [ -n "$real_kong" ]; then
    echo "gateway: $real_kong"
    export KONG_TEST_DATABASE_URL=$server/kong
    start_gateway tests/kong/run.sh
else
    echo "gateway: the project's nginx test host with the same plugins (no Docker image ${KONG_IMAGE:-kong:3.9}, no kong command; DEMO_PULL=1 pulls Kong, Prometheus and Grafana)"
    start_gateway tests/nginx-host/run.sh
fi
start_prometheus

if [ -n "$own_database" ]; then
    more+=("database   psql $DATABASE_URL" "a command  DATABASE_URL=$DATABASE_URL $target/llm-collector report --by day")
else
    more+=("database   the one of DATABASE_URL")
fi
more+=("admin      $KONG_ADMIN_URL   (Kong's Admin API)" "metrics    $COLLECTOR_URL/metrics")
DEMO_FOLDER=$demo DEMO_PROGRAMS=$PWD/$target DEMO_WEEK=$own_database DEMO_MORE=$(printf '%s\n' "${more[@]}") tests/demo/show.sh
if [ -z "${DEMO_ONCE:-}" ]; then
    say "running; Ctrl-C ends it and cleans up"
    wait "${pids[-1]}"
fi
