#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes 2s8g8n.xml, 1s4n4g.xml and small-vm.xml: machines that nobody recorded, in the form of `lstopo --of xml`.

2s8g8n: two sockets of 16 cores with two threads each; below each socket two PCI switches; on each switch two GPUs, two NVMe drives and
two NICs. 1s4n4g: one socket of 32 cores in four NUMA nodes, each with an accelerator of AMD and an NVMe drive; a NIC at the
first. Checked with `lstopo -i`.
"""
GP = [0]


def gp():
    GP[0] += 1
    return GP[0]


def sets(cpus, nodes):
    bits = sum(1 << c for c in cpus)
    words = []
    while bits or not words:
        words.insert(0, "0x%08x" % (bits & 0xffffffff))
        bits >>= 32
    cpuset = ",".join(words)
    nodeset = "0x%08x" % sum(1 << n for n in nodes)
    return ('cpuset="%s" complete_cpuset="%s" nodeset="%s" complete_nodeset="%s" gp_index="%d"'
            % (cpuset, cpuset, nodeset, nodeset, gp()), cpuset, nodeset)


def info(name, value):
    return '<info name="%s" value="%s"/>' % (name, value)


def pci(busid, kind, vendor, device, inner):
    return ('<object type="PCIDev" gp_index="%d" pci_busid="%s" pci_type="%s" pci_link_speed="31.507692">%s%s%s</object>\n'
            % (gp(), busid, kind, info("PCIVendor", vendor), info("PCIDevice", device), inner))


def osdev(name, kind, subtype, infos):
    sub = ' subtype="%s"' % subtype if subtype else ""
    return '<object type="OSDev" gp_index="%d" name="%s"%s osdev_type="%d">%s</object>' % (gp(), name, sub, kind, infos)


def switch(socket, index):
    base = 0x10 + 0x60 * socket + 0x20 * index
    first = 4 * socket + 2 * index
    out = ('<object type="Bridge" gp_index="%d" bridge_type="1-1" depth="1" bridge_pci="0000:[%02x-%02x]" '
           'pci_busid="0000:%02x:01.0" pci_type="0604 [8086:352a] [0000:0000] 04" pci_link_speed="63.015385">\n'
           % (gp(), base + 1, base + 8, base))
    for i in range(2):
        out += pci("0000:%02x:00.0" % (base + 1 + i), "0302 [10de:2330] [10de:16c1] a1", "NVIDIA Corporation", "GH100 [H100 SXM5 80GB]",
                   osdev("cuda%d" % (first + i), 5, "CUDA", info("GPUModel", "NVIDIA H100 80GB HBM3") +
                         info("CUDAGlobalMemorySize", "83054592")))
        out += pci("0000:%02x:00.0" % (base + 3 + i), "0108 [144d:a824] [144d:a801] 00", "Samsung Electronics Co Ltd",
                   "NVMe SSD Controller PM173X",
                   osdev("nvme%dn1" % (first + i), 0, "Disk", info("Size", "3750738264") + info("Model", "SAMSUNG MZWLR3T8HBLS-00007")))
        port = osdev("ib%d" % (first + i), 2, "", info("Address", "00:00:10:29:fe:80")) if i == 0 else ""
        out += pci("0000:%02x:00.0" % (base + 5 + i), "0207 [15b3:1021] [15b3:0041] 00", "Mellanox Technologies", "MT2910 Family [ConnectX-7]",
                   port + osdev("mlx5_%d" % (first + i), 3, "", info("NodeGUID", "a088:c203:0047:%04x" % (first + i))))
    return out + "</object>\n"


def head(host, cpus, nodes):
    both, cpuset, nodeset = sets(cpus, nodes)
    return ('<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE topology SYSTEM "hwloc2.dtd">\n<topology version="2.0">\n'
            '<object type="Machine" os_index="0" allowed_cpuset="%s" allowed_nodeset="%s" %s>\n' % (cpuset, nodeset, both) +
            info("Backend", "Linux") + info("OSName", "Linux") + info("HostName", host) + info("Architecture", "x86_64") + "\n")


def package(index, model, cores, threads, total_cores, memory, io):
    cpus = [index * cores + c + t * total_cores for c in range(cores) for t in range(threads)]
    out = '<object type="Package" os_index="%d" %s>\n%s' % (index, sets(cpus, [index])[0], info("CPUModel", model))
    out += '<object type="NUMANode" os_index="%d" %s local_memory="%d"/>\n' % (index, sets(cpus, [index])[0], memory)
    out += '<object type="L3Cache" %s cache_size="110100480" depth="3" cache_linesize="64" cache_associativity="15" cache_type="0">\n' % (
        sets(cpus, [index])[0])
    for c in range(cores):
        own = [index * cores + c + t * total_cores for t in range(threads)]
        out += '<object type="Core" os_index="%d" %s>' % (c, sets(own, [index])[0])
        for p in own:
            out += '<object type="PU" os_index="%d" %s/>' % (p, sets([p], [index])[0])
        out += "</object>\n"
    return out + "</object>\n" + io + "</object>\n"


def root_bridge(first, last, inner):
    return '<object type="Bridge" gp_index="%d" bridge_type="0-1" depth="0" bridge_pci="0000:[%02x-%02x]">\n%s</object>\n' % (
        gp(), first, last, inner)


def big():
    out = head("node-a", range(64), range(2))
    for s in range(2):
        io = root_bridge(0x10 + 0x60 * s, 0x6f + 0x60 * s, switch(s, 0) + switch(s, 1))
        if s == 0:  # the management controller's display chip, which is no GPU, and a DVD drive, which is no store
            io += root_bridge(0x00, 0x05, pci("0000:03:00.0", "0300 [1a03:2000] [1a03:2000] 52", "ASPEED Technology, Inc.", "ASPEED Graphics Family", "") +
                              pci("0000:00:17.0", "0106 [8086:1bd2] [8086:0000] 11", "Intel Corporation", "Sapphire Rapids SATA AHCI Controller",
                                  osdev("sr0", 0, "Removable Media Device", info("Size", "1048575"))))
        out += package(s, "Intel(R) Xeon(R) Platinum 8480C", 16, 2, 32, 1 << 39, io)
    return out + "</object>\n</topology>\n"


def quarter(index):
    cores, cpus = range(8 * index, 8 * index + 8), [t * 32 + c for c in range(8 * index, 8 * index + 8) for t in range(2)]
    out = '<object type="Group" %s kind="1001" subkind="0">\n' % sets(cpus, [index])[0]
    out += '<object type="NUMANode" os_index="%d" %s local_memory="%d"/>\n' % (index, sets(cpus, [index])[0], 96 << 30)
    for c in cores:
        out += '<object type="Core" os_index="%d" %s>' % (c, sets([c, c + 32], [index])[0])
        for p in (c, c + 32):
            out += '<object type="PU" os_index="%d" %s/>' % (p, sets([p], [index])[0])
        out += "</object>\n"
    base = 0x20 + 0x20 * index
    inner = pci("0000:%02x:00.0" % (base + 1), "1200 [1002:74a1] [1002:74a1] 00", "Advanced Micro Devices, Inc.", "Aqua Vanjaram [Instinct MI300X]",
                osdev("rsmi%d" % index, 5, "RSMI", info("GPUModel", "AMD Instinct MI300X") + info("RSMIVRAMSize", "201129984")))
    inner += pci("0000:%02x:00.0" % (base + 2), "0108 [1344:51c4] [1344:51c4] 00", "Micron Technology Inc", "9550 PRO NVMe SSD",
                 osdev("nvme%dn1" % index, 0, "Disk", info("Size", "7501476528") + info("Model", "Micron_9550_MTFDLAL7T6TGR")))
    if index == 0:
        inner += pci("0000:%02x:00.0" % (base + 3), "0200 [15b3:1021] [15b3:0041] 00", "Mellanox Technologies", "MT2910 Family [ConnectX-7]",
                     osdev("eth0", 2, "", info("Address", "02:00:00:00:00:02")))
    return out + root_bridge(base, base + 0x1f, inner) + "</object>\n"


def quarters():
    out = head("node-q", range(64), range(4))
    out += '<object type="Package" os_index="0" %s>\n%s' % (sets(range(64), range(4))[0], info("CPUModel", "AMD EPYC 9354P 32-Core Processor"))
    return out + "".join(quarter(i) for i in range(4)) + "</object>\n</object>\n</topology>\n"


def small():
    out = head("vm", range(2), range(1))
    drive = pci("0000:00:02.0", "0180 [1af4:1042] [1af4:1042] 01", "Red Hat, Inc.", "Virtio 1.0 block device",
                osdev("vda", 0, "", info("Size", "268435456")))
    nic = pci("0000:00:03.0", "0200 [1af4:1041] [1af4:1041] 01", "Red Hat, Inc.", "Virtio 1.0 network device",
              osdev("eth0", 2, "", info("Address", "02:00:00:00:00:01")))
    return out + package(0, "AMD EPYC", 2, 1, 2, 8550297600, root_bridge(0, 0, drive + nic)) + "</object>\n</topology>\n"


for name, text in (("2s8g8n.xml", big()), ("small-vm.xml", small()), ("1s4n4g.xml", quarters())):
    with open(name, "w", encoding="utf-8") as f:
        f.write(text)
