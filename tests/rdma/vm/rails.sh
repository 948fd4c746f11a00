#!/bin/sh
# usage: rails.sh COUNT   (inside the machine)
#
# Rail N is a cable between two RDMA devices: near_N at 10.0.N.1 and far_N at 10.0.N.2, soft-RoCE on the ends of a veth pair.
# Each end has jumbo frames, so that the devices offer an MTU of 4096.
#
# Soft-RoCE of this kernel listens in the first network namespace only, so both ends are addresses of one host, and the
# kernel would hand their traffic to loopback, where no device sees it. So the table of local addresses is asked last:
# what starts here looks into table 100 first, which knows each end's address to be at the other end of the cable.
set -eu
cd /proc/sys/net/ipv4/conf
echo 1 >all/accept_local
echo 0 >all/rp_filter
ip rule add iif lo lookup 100 priority 1
ip rule add lookup local priority 2
ip rule del priority 0
n=0
while [ $n -lt "$1" ]; do
    ip link add "near_$n" mtu 9000 type veth peer name "far_$n" mtu 9000
    for end in near far; do
        echo 0 >"${end}_$n/rp_filter"
        ip link set "${end}_$n" up
        rdma link add "rxe_${end}_$n" type rxe netdev "${end}_$n"
    done
    ip addr add "10.0.$n.1/32" dev "near_$n"
    ip addr add "10.0.$n.2/32" dev "far_$n"
    ip route add "10.0.$n.2" dev "near_$n" src "10.0.$n.1" table 100
    ip route add "10.0.$n.1" dev "far_$n" src "10.0.$n.2" table 100
    n=$((n + 1))
done
