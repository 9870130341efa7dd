#!/usr/bin/env bash
# A strongSwan whose user-space ESP does without UDP (5.9.11 or later; Debian 12 has 5.9.8), from Debian 13 into
# the folder that is named, with all libraries that it needs. Nothing is installed on the machine.

set -euo pipefail
target=$1
suite=trixie
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
packages=(
  strongswan-charon strongswan-libcharon strongswan-swanctl libstrongswan libcharon-extra-plugins
  libstrongswan-extra-plugins libstrongswan-standard-plugins
  libc6 libcap2 libgcc-s1 libgmp10 libssl3t64 libsystemd0 libzstd1 zlib1g
)
[[ -x "$target/usr/lib/ipsec/charon" ]] && exit

work=$(mktemp --directory)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{lists,cache/archives}/partial "$work/root"
touch "$work/status"
mirror=$(apt-get indextargets --format '$(REPO_URI)' | grep --max-count=1 '/debian/$' || true) # this machine's, if any
echo "deb [signed-by=$keyring] ${mirror:-http://deb.debian.org/debian/} $suite main" > "$work/sources.list"
apt=(
  apt-get --quiet=2 -o "Dir::Etc::SourceList=$work/sources.list" -o Dir::Etc::SourceParts=-
  -o "Dir::State::Lists=$work/lists" -o "Dir::State::Status=$work/status" -o "Dir::Cache=$work/cache"
  -o Acquire::Retries=5 -o APT::Sandbox::User=root
)
"${apt[@]}" update
cd "$work"
"${apt[@]}" download "${packages[@]}"
for each in bin sbin lib lib64; do
  mkdir -p "root/usr/$each"
  ln -s "usr/$each" "root/$each"
done
for package in *.deb; do dpkg-deb --extract "$package" root; done
mkdir -p root/{dev,proc,run,tmp,place,var}
ln -s /run root/var/run
cd - > /dev/null
mkdir -p "$(dirname "$target")"
rm -rf "$target"
mv "$work/root" "$target"
