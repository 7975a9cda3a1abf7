# The first process of a host (tests/cluster/hosts.py), inside its namespaces.
set -e
mount --make-rprivate /
mount -t proc proc /proc
hostname "$HOST_NAME"
ip link set lo up

# Its own home and Python environment: what is written there stays in the host's memory, except
# DeepSpeed's operators, which are compiled once for all. Its own /tmp, and nothing where the
# checkout is.
layers=$HOST_FOLDER/layers
mkdir "$layers" && mount -t tmpfs tmpfs "$layers"
mkdir "$layers"/{home,home-work,venv,venv-work,lower,compiled}
compiled=$HOME/.cache/torch_extensions
mkdir -p "$compiled"
mount --bind "$compiled" "$layers/compiled"
mount -t overlay overlay -o "lowerdir=$HOME,upperdir=$layers/home,workdir=$layers/home-work" "$HOME"
mount --bind "$layers/compiled" "$compiled"
mount --bind "$VENV" "$layers/lower"
for path in /tmp /dev/shm /run "$CHECKOUT"; do mount -t tmpfs tmpfs "$path"; done
mkdir -p "$VENV" /run/sshd
mount -t overlay overlay \
  -o "lowerdir=$layers/lower,upperdir=$layers/venv,workdir=$layers/venv-work" "$VENV"

# Its name leads to itself, as on Debian, and no other is known: nobody would answer, and each
# look-up would wait for that.
printf '127.0.0.1 localhost\n127.0.1.1 %s\n' "$HOST_NAME" > "$layers/hosts"
echo 'nameserver 127.0.0.1' > "$layers/resolv.conf"
for name in hosts resolv.conf; do mount --bind "$layers/$name" "/etc/$name"; done

rm -rf "$HOME/.ssh" "$HOME/.ray" "$HOME/ochat_ray" "$HOME/env"
ln -s "$VENV" "$HOME/env"
mkdir -m 700 "$HOME/.ssh"
cp "$SETUP/key.pub" "$HOME/.ssh/authorized_keys"
install -m 600 "$SETUP/host_key" "$HOME/host_key"
cp "$SETUP/bashrc" "$HOME/.bashrc"
mkdir -p "$HOME/.config/pip"
printf '[global]\nno-index = true\nfind-links = %s\n' "$SETUP/wheels" > "$HOME/.config/pip/pip.conf"

touch "$HOST_FOLDER/ready"
exec env -i PATH="$PATH" HOME="$HOME" "$SSHD" -D -e -h "$HOME/host_key" -f /dev/null \
  -o PasswordAuthentication=no -o UsePAM=no -o PermitRootLogin=prohibit-password \
  -o PrintMotd=no -o MaxSessions=100 -o MaxStartups=100 -o UseDNS=no
