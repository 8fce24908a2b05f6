# SPDX-License-Identifier: Apache-2.0
"""The part of kustomize that deploy/kubernetes uses: resources, components, namespace, configMapGenerator (files, labels, merge,
without hashes), images (newTag), patches (JSON 6902 with a target, and $patch: delete). Anything else is an error, so that nothing is
rendered differently in silence; where kubectl is there, tests/lint/manifests compares."""
import copy
import json
import os
import re

import yaml

CLUSTER_WIDE = {'Namespace', 'StorageClass', 'ClusterRole', 'ClusterRoleBinding', 'PersistentVolume', 'CustomResourceDefinition'}
KNOWN = {'apiVersion', 'kind', 'namespace', 'resources', 'components', 'configMapGenerator', 'generatorOptions', 'images', 'patches'}


class RenderError(Exception):
    pass


def read_documents(path):
    with open(path, encoding='utf-8') as f:
        # Through JSON, so that an anchor's aliases are objects of their own, and patches change one of them.
        return [json.loads(json.dumps(d)) for d in yaml.safe_load_all(f) if d is not None]


def identity(o):
    return o['kind'], o['metadata']['name']


def walk(document, pointer):
    """The container and the key that a JSON pointer means."""
    parts = [p.replace('~1', '/').replace('~0', '~') for p in pointer.split('/')[1:]]
    for p in parts[:-1]:
        document = document[int(p) if isinstance(document, list) else p]
    last = parts[-1]
    return document, (last if last == '-' or not isinstance(document, list) else int(last))


def apply_operation(document, op):
    where, key = walk(document, op['path'])
    if op['op'] == 'add':
        if isinstance(where, list):
            where.insert(len(where) if key == '-' else key, copy.deepcopy(op['value']))
        else:
            where[key] = copy.deepcopy(op['value'])
        return
    if isinstance(where, dict) and key not in where:
        raise KeyError(key)
    if op['op'] == 'replace':
        where[key] = copy.deepcopy(op['value'])
    elif op['op'] == 'remove':
        del where[key]
    elif op['op'] == 'test':
        if where[key] != op['value']:
            raise ValueError(f"{where[key]!r}")
    else:
        raise RenderError(f"operation {op['op']}")


def apply_patch(path, objects, patch):
    body = yaml.safe_load(patch['patch'])
    if isinstance(body, dict):
        if body.get('$patch') != 'delete':
            raise RenderError(f'{path}: a strategic merge patch other than $patch: delete')
        left = [o for o in objects if identity(o) != identity(body)]
        if len(left) == len(objects):
            raise RenderError(f'{path}: nothing to delete: {identity(body)}')
        return left
    target, found = patch['target'], False
    for o in objects:
        if re.fullmatch(target['kind'], o['kind']) and re.fullmatch(target.get('name', '.*'), o['metadata']['name']):
            found = True
            kind = o['kind']
            for op in body:
                try:
                    apply_operation(o, op)
                except (KeyError, IndexError, ValueError, TypeError) as e:
                    raise RenderError(f"{path}: {op['op']} {op['path']} in {kind} {o['metadata']['name']}: {e}") from e
            if o['kind'] != kind and not patch.get('options', {}).get('allowKindChange'):
                raise RenderError(f'{path}: changes a kind without allowKindChange')
    if not found:
        raise RenderError(f'{path}: no object for the target {target}')
    return objects


def generate(path, folder, objects, g):
    files = {}
    for entry in g['files']:
        key, _, name = entry.rpartition('=')
        with open(os.path.join(folder, name), encoding='utf-8') as f:
            files[key or os.path.basename(name)] = f.read()
    old = [o for o in objects if identity(o) == ('ConfigMap', g['name'])]
    if g.get('behavior', 'create') == 'merge':
        if not old:
            raise RenderError(f"{path}: no ConfigMap {g['name']} to merge with")
        old[0]['data'].update(files)
    elif old:
        raise RenderError(f"{path}: ConfigMap {g['name']} is there already")
    else:
        metadata = {'name': g['name']}
        if 'labels' in g.get('options', {}):
            metadata['labels'] = dict(g['options']['labels'])
        objects.append({'apiVersion': 'v1', 'kind': 'ConfigMap', 'metadata': metadata, 'data': files})


def set_images(node, images):
    if isinstance(node, list):
        for n in node:
            set_images(n, images)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key in ('containers', 'initContainers') and isinstance(value, list):
                for c in value:
                    for i in images:
                        if c['image'].split(':')[0] == i['name']:
                            c['image'] = f"{i['name']}:{i['newTag']}"
            set_images(value, images)


def render(folder, objects=None):
    """Objects of a kustomization, as dictionaries. A component changes those that it is given."""
    path = os.path.join(folder, 'kustomization.yaml')
    (k,) = read_documents(path)
    unknown = set(k) - KNOWN
    if unknown:
        raise RenderError(f'{path}: {", ".join(sorted(unknown))}: not known to tests/lint/kustomize.py')
    component = k['kind'] == 'Component'
    if component == (objects is None):
        raise RenderError(f"{path}: a {k['kind']} in the wrong list")
    objects = objects or []
    for r in k.get('resources', []):
        place = os.path.join(folder, r)
        objects += render(place) if os.path.isdir(place) else read_documents(place)
    for c in k.get('components', []):
        objects = render(os.path.join(folder, c), objects)
    if 'configMapGenerator' in k and not k.get('generatorOptions', {}).get('disableNameSuffixHash'):
        raise RenderError(f'{path}: a configMapGenerator with hashes')
    for g in k.get('configMapGenerator', []):
        generate(path, folder, objects, g)
    for p in k.get('patches', []):
        objects = apply_patch(path, objects, p)
    for o in objects:
        if 'namespace' in k and o['kind'] not in CLUSTER_WIDE:
            o['metadata']['namespace'] = k['namespace']
    set_images(objects, k.get('images', []))
    names = [identity(o) for o in objects]
    if len(set(names)) != len(names):
        raise RenderError(f'{path}: two objects of one kind and name')
    return objects
