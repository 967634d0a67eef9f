"""What a job asks sbatch for: the harness's own parameters, and a profile's in their place.

Not here: the profile's keys (`harness.cluster.profile`), the script (`harness.cluster.script`).
"""

from __future__ import annotations

import math

from harness.cluster.profile import Request

# A parameter of ours, and those of a profile that take its place.
_FAMILIES = {
    "mem": ("mem", "mem-per-cpu", "mem-per-gpu"),
    "gres": ("gres", "gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket"),
    "cpus-per-task": ("cpus-per-task", "cpus-per-gpu"),
    "nodes": ("nodes",),
    "partition": ("partition",),
    "account": ("account",),
    "qos": ("qos",),
    "constraint": ("constraint",),
    "wckey": ("wckey",),
}


def ask_sbatch(
    request: Request, gpus: int, requeue: bool, nodes: int = 1
) -> tuple[dict[str, str | bool], frozenset[str]]:
    """Parameters of sbatch by their long names, and those that are not to be set at all.

    gpus: how many the job has on all its nodes, if it has any. What sbatch takes by node (its own
    `gpus` alone is of the job) is that of one.
    """
    total = 0 if request.gpu == "none" else gpus
    count = total // nodes
    mib = math.ceil(1024 * (request.memory_gib or 0.0))
    ours = {
        "mem": f"{mib // 1024}GB" if mib % 1024 == 0 else f"{mib}MB",
        "gres": f"{request.gpu or 'gpu'}:{count}" if count else None,
        "cpus-per-task": str(request.cpus) if request.cpus else None,
        "nodes": str(nodes),
        "partition": request.partition,
        "account": request.account,
        "qos": request.qos,
        "constraint": request.constraint,
        "wckey": None,  # which submitit would set
    }
    fields = {
        "gpus": count,
        "cpus": request.cpus or 1,
        "mib": mib,
        "mib_per_cpu": math.ceil(mib / (request.cpus or 1)),
        "mib_per_gpu": math.ceil(mib / max(1, count)),
    }
    of_job = {**fields, "gpus": total}
    asked: dict[str, str | bool] = {"requeue" if requeue else "no-requeue": True}
    unset = set()
    for key, setting in request.sbatch.items():
        name = key.replace("_", "-")
        if setting is None:
            unset.add(name)
        elif isinstance(setting, bool):
            asked[name if setting else f"no-{name}"] = True
        elif count or "gpu" not in name:
            asked[name] = _fill(setting, of_job if name == "gpus" else fields)
    for name, setting in ours.items():
        if not asked.keys().isdisjoint(_FAMILIES[name]) or name in unset:
            continue
        if setting is None:
            unset.add(name)
        else:
            asked[name] = setting
    replaced = {name for name, family in _FAMILIES.items() if name not in asked}
    return asked, frozenset(unset | replaced)


def _fill(text: str, fields: dict[str, int]) -> str:
    for name, number in fields.items():
        text = text.replace(f"{{{name}}}", str(number))
    return text
