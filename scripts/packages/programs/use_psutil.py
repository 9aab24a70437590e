"""psutil: what it says of this process, kept as it comes."""

import sys

sys.path.append('/usr/lib/python3/dist-packages')

import psutil


def main(n):
    process = psutil.Process()
    kept = []
    for _ in range(5 * n):
        with process.oneshot():
            kept += [process.memory_info(), process.cpu_times(),
                     process.threads(), process.open_files()]
        kept += [psutil.virtual_memory(), psutil.cpu_times(percpu=True),
                 psutil.disk_partitions(all=True)]
    try:
        psutil.Process(2**22 + 1)
    except psutil.NoSuchProcess as error:
        kept.append(str(error))
    return kept
