# Debian packages fetched and unpacked without installing them, and what the guests take from them. Sourced in the
# download folder; $version (kernel) must be set before copy_modules.

# fetch PACKAGE...: newest version of each that apt knows, kept here.
fetch() {
  local p
  for p; do
    ls "${p}"_*.deb >/dev/null 2>&1 && continue
    timeout 300 apt-get -qq -o APT::Sandbox::User=root download "$p" || {
      # lists older than the archive: refresh once
      "$([ "$(id -u)" = 0 ] && echo env || echo sudo)" apt-get -qq update
      timeout 300 apt-get -qq -o APT::Sandbox::User=root download "$p"
    }
  done
}

unpack() { rm -rf "$2"; mkdir "$2"; dpkg-deb -x "$1"_*.deb "$2"; }

# copy_modules DEST NAME...: kernel modules with what they depend on.
copy_modules() {
  local dest=$1 name line f; shift
  for name; do
    line=$(grep -E "/${name}\.ko:" "k/lib/modules/$version/modules.dep") || {
      grep -q "/${name}\.ko" "k/lib/modules/$version/modules.builtin" && continue
      die "kernel $version has no module $name"
    }
    for f in ${line/:/}; do install -D -m644 "k/lib/modules/$version/$f" "$dest/lib/modules/$version/$f"; done
  done
}

# copy_programs DEST FILE...: programs with their shared libraries (not those that base/ has already).
copy_programs() {
  local dest=$1 f l; shift
  for f; do
    install -D "$f" "$dest/bin/${f##*/}"
    ldd "$f" | awk '$3 ~ /^\//{print $3} $1 ~ /^\//{print $1}' | while read -r l; do
      [ -e "$dest$l" ] || [ -e "base$l" ] || install -D "$l" "$dest$l"
    done
  done
}
