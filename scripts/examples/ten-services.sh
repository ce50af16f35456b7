#!/usr/bin/env bash
# Ten services of two clients through one door, from an empty directory to traffic, with the commands that
# a user types; then two attacks on the name of one client, which are refused.
#
#   scripts/examples/ten-services.sh [DIRECTORY]
#       takes qmux-dp and qmux-ctl from there; without, from target/release, and builds them
#
# Ends with 0 only if each service was reached, with every byte right, and both attacks were refused.
# Needs python3, for the services and their visitors. All of it happens on 127.0.0.1, on ports that are
# free, in a directory that is gone afterwards.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
say() { printf '\n== %s\n' "$*"; }
fail() {
    echo "ten-services: $*" >&2
    for log in "$work"/*.log; do
        echo "---- $log" >&2
        tail -n 30 "$log" >&2
    done
    exit 1
}

if [ -n "${1-}" ]; then
    bin=$(realpath "$1")
else
    (cd "$root" && cargo build --locked --release -p qmux-dp -p qmux-ctl)
    bin=$(realpath "${CARGO_TARGET_DIR:-$root/target}/release")
fi
export PATH=$bin:$PATH NO_COLOR=1

work=$(mktemp -d "${TMPDIR:-/tmp}/ten-services.XXXXXX")
processes=()
clean_up() {
    for process in "${processes[@]}"; do
        kill "$process" 2>/dev/null || true
    done
    wait
    rm -rf "$work"
}
trap clean_up EXIT
cd "$work"

# A command as a user types it: shown, then run.
run() {
    printf '$ %s\n' "$*"
    "$@"
}

start() { # log command…: in the background
    local log=$1
    shift
    printf '$ %s &\n' "$*"
    "$@" >"$log" 2>&1 &
    process=$!
    processes+=("$process")
}

stop() { # process
    kill "$1"
    wait "$1" || true
    local others=() other
    for other in "${processes[@]}"; do
        [ "$other" = "$1" ] || others+=("$other")
    done
    processes=("${others[@]}")
}

# Waits until the log holds what is looked for, as long as the process lives; 60 s at most.
await() { # log process text
    local _
    for _ in $(seq 600); do
        if grep -q -- "$3" "$1" 2>/dev/null; then
            return 0
        fi
        kill -0 "$2" 2>/dev/null || return 1
        sleep 0.1
    done
    return 1
}

# ---- what is behind the clients, and who visits -----------------------------------------------------------

# Services that say their name and port, and send back what they get; and the visitors who check that.
cat >services.py <<'PYTHON'
"""services.py ports | serve PLACES | visit PLACES: free ports, echo services, visitors."""
import os, random, socket, sys, threading

HOST = "127.0.0.1"

def is_free(port):
    try:
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            tcp.bind((HOST, port))
            udp.bind((HOST, port))
        return True
    except OSError:
        return False

def ports():
    """The first port of 300 in a row that are free, below those that the system gives away."""
    with open("/proc/sys/net/ipv4/ip_local_port_range") as file:
        end = int(file.read().split()[0])
    if end < 10_000:
        end = 60_000  # It gives nearly all of them away.
    for _ in range(1000):
        first = random.randrange(5_000, end - 300)
        if all(is_free(port) for port in range(first, first + 300)):
            return first
    sys.exit("no 300 free ports in a row")

def places(path):
    """Lines of: name protocol port-of-the-visitor port-of-the-service count."""
    with open(path) as file:
        for line in file:
            name, protocol, public, local, count = line.split()
            for place in range(int(count)):
                yield name, protocol, int(public) + place, int(local) + place

def serve_stream(stream, greeting):
    with stream:
        try:
            stream.sendall(greeting)
            while data := stream.recv(65536):
                stream.sendall(data)
        except OSError:
            pass  # The visitor has gone, or a check of the client's.

def accept(listener, greeting):
    while True:
        stream, _ = listener.accept()
        threading.Thread(target=serve_stream, args=(stream, greeting), daemon=True).start()

def answer(udp, greeting):
    while True:
        data, visitor = udp.recvfrom(65536)
        udp.sendto(greeting + data, visitor)

def serve(path):
    threading.stack_size(256 << 10)
    for name, protocol, _, local in places(path):
        greeting = f"{name} {local}\n".encode()
        if protocol != "udp":
            listener = socket.create_server((HOST, local), backlog=128)
            threading.Thread(target=accept, args=(listener, greeting), daemon=True).start()
        if protocol != "tcp":
            udp = socket.socket(type=socket.SOCK_DGRAM)
            udp.bind((HOST, local))
            threading.Thread(target=answer, args=(udp, greeting), daemon=True).start()
    print("services are ready", flush=True)
    threading.Event().wait()

def visit_tcp(public, expected):
    """Sends 100 KB, ends, and reads to the end."""
    sent = os.urandom(100_000)
    with socket.create_connection((HOST, public), timeout=60) as stream:
        threading.Thread(target=lambda: (stream.sendall(sent), stream.shutdown(socket.SHUT_WR))).start()
        received = b""
        while data := stream.recv(65536):
            received += data
    return received == expected + sent

def visit_udp(public, expected):
    """Datagrams may be lost: tried again a few times."""
    with socket.socket(type=socket.SOCK_DGRAM) as udp:
        udp.settimeout(4)
        udp.connect((HOST, public))
        for _ in range(8):
            sent = os.urandom(1_000)
            udp.send(sent)
            try:
                if udp.recv(65536) == expected + sent:
                    return True
            except OSError:
                pass
    return False

def visit(path):
    checked = {}
    for name, protocol, public, local in places(path):
        expected = f"{name} {local}\n".encode()
        for kind, way in (("tcp", visit_tcp), ("udp", visit_udp)):
            if protocol in (kind, "both"):
                if not way(public, expected):
                    sys.exit(f"{name}: {kind} port {public} did not reach port {local}")
                checked.setdefault(name, []).append(kind)
    for name, kinds in checked.items():
        said = ", ".join(f"{kinds.count(kind)} × {kind}" for kind in ("tcp", "udp") if kind in kinds)
        print(f"   {name:<10} {said}: every byte right")
    print(f"   {len(checked)} services")

if __name__ == "__main__":
    what, *paths = sys.argv[1:]
    print(ports()) if what == "ports" else {"serve": serve, "visit": visit}[what](*paths)
PYTHON

first=$(python3 services.py ports)
door=127.0.0.1:$first
name_of=(web git wiki dns game mail shop voip vpn rooms)
protocol_of=(tcp tcp tcp udp both tcp tcp udp both both)
count_of=(1 1 1 1 1 1 1 1 1 100)
# The ports of visitors and of services; service 9 is a range.
for number in 0 1 2 3 4 5 6 7 8 9; do
    echo "${name_of[number]} ${protocol_of[number]} $((first + 1 + number)) $((first + 120 + number)) ${count_of[number]}"
done >places
start services.log python3 services.py serve places
await services.log "$process" ready || fail "the services did not start"

# ---- the server -----------------------------------------------------------------------------------------

say "the server: certificates, and a config with one door for ten services"
run qmux-ctl certs --server-name 127.0.0.1
{
    echo '[server]'
    echo "quic_addr = \"$door\""
    while read -r name protocol public _ count; do
        port=$public
        [ "$count" -eq 1 ] || port=$public-$((public + count - 1))
        echo '[[server.services]]'
        echo "name = \"$name\""
        echo "traffic_addr = \"127.0.0.1:$port\""
        echo "protocol = \"$protocol\""
    done <places
    cat <<'TOML'
[server.auth]
method = "mtls"
ca_cert_file = "certs/ca.crt"
[server.tls]
server_cert_file = "certs/server.crt"
server_key_file = "certs/server.key"
TOML
} >server.toml

say "two clients: each gets one file, and an entry at the server with what it may serve"
at() { # name: as --services takes it
    awk -v name="$1" '$1 == name { printf "%s=127.0.0.1:%s", name, $4 }' places
}
of_nas=$(at web),$(at git),$(at wiki),$(at dns),$(at game)
of_lab=$(at mail),$(at shop),$(at voip),$(at vpn),$(at rooms)
add() { # name services: as a user types it, with >>server.toml
    printf '$ qmux-ctl client add %s --server %s --services %s >>server.toml\n' "$1" "$door" "$2"
    qmux-ctl client add "$1" --server "$door" --services "$2" >>server.toml
}
add nas "$of_nas"
add lab "$of_lab"
# One thing has to be edited by hand: a range of ports.
range=$(awk '$1 == "rooms" { print $4 }' places)
run sed -i "s/^port = $range\$/port = \"$range-$((range + 99))\"/" lab.toml
sed -n '/^\[\[server.clients/,$p' server.toml

say "everything is checked before it runs"
for name in server nas lab; do
    printf '$ qmux-dp --config %s.toml --check\n' "$name"
    qmux-dp --config "$name.toml" --check >check.log 2>&1 || fail "$name.toml is not right"
done

say "the server and both clients run"
start server.log qmux-dp --config server.toml --cores 2
server=$process
await server.log "$server" ' ready' || fail "the server did not start"
for name in nas lab; do
    start "$name.log" qmux-dp --config "$name.toml" --cores 1
    await "$name.log" "$process" ' ready' || fail "$name did not register"
done

say "each service, each port of the range, with traffic"
python3 services.py visit places || fail "not every service was reached"

# ---- attacks ---------------------------------------------------------------------------------------------

# The operator's own copy of a service of nas, which must go on getting every visitor.
victim() {
    grep '^web ' places >web
    for _ in $(seq 20); do
        python3 services.py visit web >/dev/null || fail "a visitor of nas went elsewhere"
    done
    echo "   20 of 20 visitors of nas reach nas"
}
quote() { # log text: the line that says it
    local line
    line=$(grep -m1 -- "$2" "$1") || fail "$1 does not say: $2"
    echo "   $1: ${line#* }"
}

say "attack 1: a stranger with a certificate of the same CA, but without an entry, calls itself nas"
printf '$ qmux-ctl client add mallory --server %s --services web=127.0.0.1:1\n' "$door"
qmux-ctl client add mallory --server "$door" --services web=127.0.0.1:1 >/dev/null
run sed -i 's/^\[client\]$/[client]\nclient_id = "nas"/' mallory.toml
start mallory.log qmux-dp --config mallory.toml --cores 1
mallory=$process
await mallory.log "$mallory" 'refused this client' || fail "mallory was not refused"
victim
stop "$mallory"

say "attack 2: lab, a client with rights of its own, calls itself nas and offers its service"
cp lab.toml thief.toml
run sed -i -e 's/^\[client\]$/[client]\nclient_id = "nas"/' \
    -e 's/^name = "mail"$/name = "web"/' thief.toml
start thief.log qmux-dp --config thief.toml --cores 1
thief=$process
await thief.log "$thief" 'does not let this client serve' || fail "the thief was not told"
victim
stop "$thief"

say "what the logs say of attack 1"
quote mallory.log 'refused this client'
quote server.log 'registration refused'
quote server.log 'no entry of'
say "what the logs say of attack 2"
quote thief.log 'does not let this client serve'
quote server.log 'client offers services that it cannot serve here'

say "and all services are as they were"
python3 services.py visit places || fail "not every service was reached after the attacks"
say "all is right"
