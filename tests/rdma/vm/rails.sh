#!/bin/sh
# usage: rails.sh COUNT   (inside the machine)
#
# Rail N is a cable between two RDMA devices: aN at 10.0.N.1 and bN at 10.0.N.2, soft-RoCE on the ends of a veth pair.
# Each end has jumbo frames, so that the devices offer an MTU of 4096.
#
# Soft-RoCE of this kernel listens in the first network namespace only, so both ends are addresses of one host, and the
# kernel would hand their traffic to loopback, where no device sees it. So the table of local addresses is asked last:
# what starts here looks into table 10 first, which knows each end's address to be at the other end of the cable.
set -eu
cd /proc/sys/net/ipv4/conf
echo 1 >all/accept_local
echo 0 >all/rp_filter
ip rule add iif lo lookup 10 priority 1
ip rule add lookup local priority 2
ip rule del priority 0
n=0
while [ $n -lt "$1" ]; do
    ip link add "a$n" mtu 9000 type veth peer name "b$n" mtu 9000
    for end in a b; do
        echo 0 >"$end$n/rp_filter"
        ip link set "$end$n" up
        rdma link add "rxe_$end$n" type rxe netdev "$end$n"
    done
    ip addr add "10.0.$n.1/32" dev "a$n"
    ip addr add "10.0.$n.2/32" dev "b$n"
    ip route add "10.0.$n.2" dev "a$n" src "10.0.$n.1" table 10
    ip route add "10.0.$n.1" dev "b$n" src "10.0.$n.2" table 10
    n=$((n + 1))
done
