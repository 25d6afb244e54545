#!/usr/bin/python
# Brings the configuration of a Switchback namespace to what a document says. All judgement is `switchback config apply`'s.

DOCUMENTATION = r"""
---
module: switchback_config
short_description: Gates, rollouts, retry policies, limits and schedules of a Switchback namespace
description:
  - Runs C(switchback config apply) with a document. What is so already is left alone, so that repeating it changes nothing.
  - In check mode it runs with C(--dry-run); in diff mode it shows the configuration before and after.
  - It refuses what would strand queued work, and a gate that somebody changed meanwhile; the message says why.
requirements:
  - The C(switchback) command on the host that the module runs on. Usually that is one host of the fleet, or the controller
    (C(delegate_to), C(run_once)).
options:
  content:
    description: The document, as text (TOML or YAML) or as a mapping. One of O(content) and O(src).
    type: raw
  src:
    description: Path of the document on the host that the module runs on. One of O(content) and O(src).
    type: path
  format:
    description: What O(content) is written in. A mapping is YAML.
    type: str
    choices: [toml, yaml]
    default: yaml
  namespace:
    description: The namespace. Defaults to what the command is configured for, or the document says.
    type: str
  vars:
    description: Values for the document's template variables.
    type: dict
    default: {}
  env:
    description: The section of O(vars) that lies over its top level, e.g. V(production).
    type: str
  redis_url:
    description: Where Redis is. Passed in the environment, so that it is not in the process list. Defaults to what the command
      is configured for.
    type: str
  config_file:
    description: The command's own settings file.
    type: path
  if_rev:
    description: Only if the configuration is still at this revision.
    type: int
  by:
    description: Who; goes into the histories. Defaults to C($USER).
    type: str
  why:
    description: Why; goes into the histories.
    type: str
  force:
    description: Apply it even if it strands queued work. That is written down, too.
    type: bool
    default: false
  executable:
    description: The command.
    type: str
    default: switchback
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
"""

EXAMPLES = r"""
- name: The namespace is as its document says
  switchback_config:
    namespace: shop
    content: "{{ lookup('file', 'shop.toml') }}"
    format: toml
    vars:
      workers: 40
    why: "deploy {{ release }}"
  run_once: true

- name: A candidate gets ten percent
  switchback_config:
    namespace: shop
    content:
      queues:
        send_email:
          gate:
            candidate: v2
            percent: 10
"""

RETURN = r"""
revision:
  description: The configuration's revision after it.
  returned: success
  type: int
changes:
  description: What changed, or in check mode would change, field by field.
  returned: success
  type: list
  elements: dict
problems:
  description: What speaks against it and was passed over with O(force).
  returned: success
  type: list
  elements: dict
warnings:
  description: What somebody should look at.
  returned: success
  type: list
  elements: str
"""

import json
import os

from ansible.module_utils.basic import AnsibleModule

# `switchback`'s exit codes, in words.
EXITS = {
    1: "failed",
    2: "usage or configuration",
    3: "Redis unreachable",
    4: "no such queue",
    5: "refused",
    6: "applied, but not everyone confirmed",
}


def command(module):
    """The arguments, and what goes to standard input."""
    given = module.params
    args = [module.get_bin_path(given["executable"], required=True), "--output", "json"]
    if given["namespace"]:
        args += ["--namespace", given["namespace"]]
    if given["config_file"]:
        args += ["--config", given["config_file"]]
    args += ["config", "apply"]
    stdin = None
    if given["src"]:
        args.append(given["src"])
    else:
        content = given["content"]
        if isinstance(content, (str, bytes)):
            stdin, form = content, given["format"]
        else:
            stdin, form = json.dumps(content), "yaml"  # JSON is YAML, and needs no library here
        args += ["-", "--format", form]
    if given["vars"]:
        # A file, for a number is to stay a number; the directory goes with the task.
        path = os.path.join(module.tmpdir, "switchback-vars.json")
        with open(path, "w") as file:
            json.dump(given["vars"], file)
        args += ["--vars", path]
        if given["env"]:
            args += ["--env", given["env"]]
    if given["if_rev"] is not None:
        args += ["--if-rev", str(given["if_rev"])]
    for option in ("by", "why"):
        if given[option]:
            args += ["--" + option, given[option]]
    if given["force"]:
        args.append("--force")
    if module.check_mode:
        args.append("--dry-run")
    return args, stdin


def main():
    module = AnsibleModule(
        argument_spec=dict(
            content=dict(type="raw"),
            src=dict(type="path"),
            format=dict(type="str", choices=["toml", "yaml"], default="yaml"),
            namespace=dict(type="str"),
            vars=dict(type="dict", default={}),
            env=dict(type="str"),
            redis_url=dict(type="str", no_log=True),
            config_file=dict(type="path"),
            if_rev=dict(type="int"),
            by=dict(type="str"),
            why=dict(type="str"),
            force=dict(type="bool", default=False),
            executable=dict(type="str", default="switchback"),
        ),
        mutually_exclusive=[("content", "src")],
        required_one_of=[("content", "src")],
        required_by={"env": ("vars",)},
        supports_check_mode=True,
    )
    args, stdin = command(module)
    environment = dict(os.environ)
    if module.params["redis_url"]:
        environment["SWITCHBACK_REDIS_URL"] = module.params["redis_url"]
    code, out, err = module.run_command(args, data=stdin, environ_update=environment)
    try:
        result = json.loads(out)
    except ValueError:
        result = {}
    if code != 0 or not isinstance(result, dict) or "changed" not in result:
        why = err.strip().splitlines()
        module.fail_json(
            msg=why[-1] if why else "%s said nothing" % args[0],
            reason=EXITS.get(code, "exit code %d" % code),
            rc=code,
            stderr=err,
            changed=bool(result.get("changed")) if isinstance(result, dict) else False,
        )
    for warning in result.get("warnings", []):
        module.warn(warning)
    answer = dict(
        changed=result["changed"],
        revision=result.get("revision"),
        changes=result.get("changes", []),
        problems=result.get("problems", []),
    )
    if module._diff:
        diff = result.get("diff") or {}
        answer["diff"] = dict(
            before_header="in Redis", after_header="document", before=diff.get("before", ""), after=diff.get("after", "")
        )
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
