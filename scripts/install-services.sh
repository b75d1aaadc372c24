#!/usr/bin/env bash
# What `make test-services` needs, through apt: PostgreSQL, RabbitMQ, Slurm with munge, an SSH server. None of them is started, and
# one that runs already is left alone: the tests have instances of their own, in a temporary folder, on ports of their own.
set -euo pipefail

packages=()
compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || packages+=(postgresql)
[ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || packages+=(rabbitmq-server)
for program in slurmctld slurmd munged sshd; do
    PATH=$PATH:/usr/sbin:/sbin command -v $program >/dev/null && continue
    case $program in munged) packages+=(munge) ;; sshd) packages+=(openssh-server) ;; *) packages+=($program) ;; esac
done
command -v sbatch >/dev/null || packages+=(slurm-client)
command -v ssh-keygen >/dev/null || packages+=(openssh-client)
[ ${#packages[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "Please install what Debian calls: ${packages[*]} (this script does, run as root on Debian)" >&2
    exit 1
fi

# Debian starts a service when it installs one, unless this file says no. PostgreSQL would make a database cluster, too.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod +x $policy
    trap 'rm -f $policy' EXIT
fi
cluster=/etc/postgresql-common/createcluster.conf
if [ ! -e $cluster ]; then
    mkdir -p "$(dirname $cluster)"
    echo 'create_main_cluster = false' >$cluster
fi

echo "apt-get install ${packages[*]}"
export DEBIAN_FRONTEND=noninteractive
apt=(apt-get -qq -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 -o Dpkg::Options::=--force-confold)
for attempt in 1 2 3 4; do
    if "${apt[@]}" update && "${apt[@]}" install -y --no-install-recommends "${packages[@]}" >/dev/null; then exit 0; fi
    echo "apt-get failed, attempt $attempt of 4" >&2
    sleep $((attempt * 15))
done
exit 1
