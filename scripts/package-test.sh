#!/usr/bin/env bash
# Installs a package in a clean root, uses what is in it, and removes it. For scripts/package.sh,
# which starts it in namespaces of its own.
set -euo pipefail

package=$1
fail() {
    echo "package-test: $*" >&2
    exit 1
}
say() { echo "package-test: $*"; }

work=$(mktemp -d)
mount -t tmpfs none "$work"
root=$work/root
mkdir -p "$root"
suite=bookworm
if command -v debootstrap >/dev/null &&
    debootstrap --variant=minbase "$suite" "$root" >"$work/debootstrap.log" 2>&1; then
    say "the root is a fresh Debian $suite"
else
    rm -rf "$root"
    mkdir "$root"
    # This host's system, with changes kept in memory and thrown away.
    mkdir -p "$work"/{changes,work}
    mount -t overlay overlay -o "lowerdir=/,upperdir=$work/changes,workdir=$work/work" "$root"
    say "the root is this host's system, as a copy"
fi
for dir in proc sys dev; do
    mkdir -p "$root/$dir"
    mount --rbind "/$dir" "$root/$dir"
done
# No init runs in there, whatever runs outside.
mkdir -p "$root/run"
mount -t tmpfs none "$root/run"
cp "$package" "$root/run/qmux-dp.deb"
in_root() { chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root "$@"; }

in_root dpkg --install /run/qmux-dp.deb >"$work/install.log" 2>&1 || {
    cat "$work/install.log" >&2
    fail "it cannot be installed"
}
in_root getent passwd qmux-dp >/dev/null || fail "there is no user qmux-dp"
[ "$(stat -c '%a' "$root/etc/qmux-dp")" = 750 ] || fail "/etc/qmux-dp can be read by everybody"
for file in usr/lib/systemd/system/qmux-dp-server.service usr/lib/systemd/system/qmux-dp@.service \
    usr/share/man/man1/qmux-dp.1.gz usr/share/man/man1/qmux-ctl-doctor.1.gz \
    usr/share/bash-completion/completions/qmux-ctl usr/share/zsh/vendor-completions/_qmux-ctl \
    usr/share/fish/vendor_completions.d/qmux-ctl.fish \
    usr/share/doc/qmux-dp/examples/server.toml usr/share/doc/qmux-dp/examples/client.toml; do
    [ -f "$root/$file" ] || fail "/$file is not in it"
done
grep -q '^ExecStart=/usr/bin/qmux-dp ' "$root/usr/lib/systemd/system/qmux-dp@.service" ||
    fail "the unit starts another program"
grep -q '^ExecReload=' "$root/usr/lib/systemd/system/qmux-dp@.service" || fail "no reload"
say "installed"

# The steps of the README, by the units' user; where no systemd runs, by the units' command.
in_root qmux-ctl certs --server-name 127.0.0.1 --out /etc/qmux-dp/certs >/dev/null
for role in server client; do
    in_root qmux-ctl config "$role" --out "/etc/qmux-dp/$role.toml" >/dev/null
done
# The least that an operator has to edit.
sed -i 's/server\.example\.com/127.0.0.1/' "$root/etc/qmux-dp/client.toml"
in_root chgrp -R qmux-dp /etc/qmux-dp
in_root chmod -R g+rX /etc/qmux-dp
as_user() { in_root setpriv --reuid qmux-dp --regid qmux-dp --init-groups "$@"; }
as_user qmux-dp --config /etc/qmux-dp/server.toml --check >/dev/null || fail "the server's config"
as_user qmux-dp --config /etc/qmux-dp/client.toml --check >/dev/null || fail "the client's config"
as_user qmux-dp demo --once >"$work/demo.log" 2>&1 || {
    cat "$work/demo.log" >&2
    fail "qmux-dp demo --once"
}
say "it runs"

in_root dpkg --purge qmux-dp >"$work/remove.log" 2>&1 || {
    cat "$work/remove.log" >&2
    fail "it cannot be removed"
}
for file in usr/bin/qmux-dp usr/bin/qmux-ctl usr/lib/systemd/system/qmux-dp@.service; do
    [ ! -e "$root/$file" ] || fail "/$file is left behind"
done
! in_root getent passwd qmux-dp >/dev/null || fail "the user qmux-dp is left behind"
[ -f "$root/etc/qmux-dp/server.toml" ] ||
    fail "the purge took a config that the package did not bring"
say "removed; what the operator made in /etc/qmux-dp is there still"
