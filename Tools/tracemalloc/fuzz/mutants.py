"""Bugs that the fuzz targets of tracemalloc's containers have to find.

    mutants.py list                     number, target and name of each
    mutants.py make NUMBER SOURCE DIR   write the changed file to DIR
"""

import os
import sys

HEADER = 'Include/internal/pycore_tracemalloc_containers.h'
MAP = 'Python/tracemalloc_map.c'
TABLE = 'Python/tracemalloc_table.c'
POOLS = 'Python/tracemalloc_pools.c'
INTERN = 'Python/tracemalloc_intern.c'

# Target, name, file, what is there once, and what replaces it.
MUTANTS = [
    ('map', 'probe does not wrap around (hole before entry)', HEADER,
     'return home <= hole || home > i;',
     'return home <= hole;'),
    ('map', 'probe does not wrap around (hole behind entry)', HEADER,
     'return home <= hole && home > i;',
     'return home <= hole;'),
    ('map', 'copy forgets the old slots', MAP,
     '    if (map->old != NULL) {\n        (void)copy_slots',
     '    if (false) {\n        (void)copy_slots'),
    ('map', 'copy includes the slots that were moved', MAP,
     'copy_slots(map->old, map->moved,',
     'copy_slots(map->old, 0,'),
    ('map', 'no mark where a trace was removed', MAP,
     'block->ptr = REMOVED;',
     'block->ptr = 0;'),
    ('map', 'marks are moved like traces', MAP,
     'map->old[map->moved].ptr > REMOVED',
     'map->old[map->moved].ptr != 0'),
    ('map', 'old slots are looked up from the start', MAP,
     'Py_MAX(home, map->moved)',
     'home'),
    ('map', 'old slots are looked up around the end', MAP,
     'i + 1 : map->moved;',
     'i + 1 : 0;'),
    ('map', 'a lookup ends at the last old slot', MAP,
     '        i = i + 1 < map->old_capacity ? i + 1 : map->moved;',
     '        if (++i == map->old_capacity) {\n'
     '            return NULL;\n'
     '        }'),
    ('map', 'shrinking loses reservations', HEADER,
     'if (map->used + map->reserved < map->low) {',
     'if (map->used < map->low) {'),
    ('map', 'one trace too many', HEADER,
     'return map->used + map->reserved < map->limit && map->old == NULL;',
     'return map->used + map->reserved <= map->limit && map->old == NULL;'),
    ('map', 'adding does not move old slots', HEADER,
     '< map->limit && map->old == NULL;',
     '< map->limit;'),
    ('map', 'too few old slots are moved by a call', MAP,
     '#define MOVES 32',
     '#define MOVES 16'),
    ('map', 'reserved without memory in a map that is full', MAP,
     '>= LAST_LIMIT(map->capacity)',
     '> map->capacity'),
    ('map', 'slots of an empty map are leaked', MAP,
     '        free_slots(map, map->slots);\n    }\n    else {',
     '    }\n    else {'),
    ('map', 'memory of the old slots is not counted', MAP,
     'nslots += map->old_capacity;',
     'nslots += 0;'),
    ('table', 'probe does not wrap around (hole before entry)', HEADER,
     'return home <= hole || home > i;',
     'return home <= hole;'),
    ('table', 'removing moves a single entry', TABLE,
     '            hole = i;\n',
     '            hole = i;\n            break;\n'),
    ('table', 'the domain is ignored', TABLE,
     'trace->ptr == ptr && trace->domain == domain',
     'trace->ptr == ptr'),
    ('table', 'one trace too many', TABLE,
     'table->used + table->reserved == table->limit',
     'table->used + table->reserved == table->limit + 1'),
    ('table', 'shrinking loses reservations', TABLE,
     'table->used + table->reserved < table->limit / 8',
     'table->used < table->limit / 8'),
    ('table', 'the walk stops before the last slot', TABLE,
     'table->slots + table->capacity;',
     'table->slots + table->capacity - 1;'),
    ('table', 'a reservation is counted without memory', TABLE,
     '        if (resize(table, capacity) < 0) {\n',
     '        if (resize(table, capacity) < 0) {\n'
     '            table->reserved++;\n'),
    ('pools', 'the reciprocal is rounded down', POOLS,
     '((1 << 16) + units - 1) / units',
     '(1 << 16) / units'),
    ('pools', 'no slot for what remains at the end', POOLS,
     '(POOL_SIZE - POOL_OVERHEAD) / block_size + 1;',
     '(POOL_SIZE - POOL_OVERHEAD) / block_size;'),
    ('pools', 'the offset is not stored', HEADER,
     '    place.trace->offset = (uint16_t)(\n'
     '        ptr - _PyTracePool_Address(place.pool, place.trace));\n',
     ''),
    ('pools', 'the offset is not compared', HEADER,
     '        if (trace->traceback != _PyTraceback_NONE\n'
     '            && _PyTracePool_Address(place.pool, trace) == ptr)\n',
     '        if (trace->traceback != _PyTraceback_NONE)\n'),
    ('pools', 'addresses in the header of a pool are looked up', HEADER,
     'pools->npools == 0 || (ptr & POOL_SIZE_MASK) < POOL_OVERHEAD',
     'pools->npools == 0'),
    ('pools', 'a probe does not wrap around', HEADER,
     '    size_t i = (size_t)(hash >> 32);\n'
     '    for (;; i++) {\n'
     '        _PyTracePool **slot = &pools->slots'
     '[i & (pools->capacity - 1)];\n',
     '    size_t i = (size_t)(hash >> 32) & (pools->capacity - 1);\n'
     '    for (;; i++) {\n'
     '        _PyTracePool **slot = &pools->slots[i];\n'),
    ('pools', 'a probe ends at the first slot', HEADER,
     'if (*slot == NULL || (*slot)->address == address) {',
     'if (true) {'),
    ('pools', 'a place that is taken is free', HEADER,
     'is_free ? slot : NULL',
     'is_free ? slot : slot'),
    ('pools', 'a pool that gets a trace stays empty', HEADER,
     '    pools->nempty -= place.pool->used == 0;\n',
     ''),
    ('pools', 'empty pools are never dropped', HEADER,
     '        _PyTracePools_DropEmpty(pools);\n',
     ''),
    ('pools', 'a pool with one trace is dropped', POOLS,
     '        if (pool->used == 0) {\n            free_pool',
     '        if (pool->used <= 1) {\n            free_pool'),
    ('pools', 'dropped pools are counted as empty', POOLS,
     '    pools->nempty = 0;\n',
     ''),
    ('pools', 'without memory all slots are given up', POOLS,
     '    if (slots == NULL) {\n        return -1;\n',
     '    if (slots == NULL) {\n        pools->npools = 0;\n'
     '        return -1;\n'),
    ('pools', 'a pool keeps its block size', POOLS,
     'if (*slot == NULL || (*slot)->block_size != block_size) {',
     'if (*slot == NULL) {'),
    ('pools', 'a pool is lost without memory for its successor', POOLS,
     '        if (pool == NULL) {\n            return NULL;\n        }\n'
     '        if (*slot != NULL) {\n            free_pool(pools, *slot);\n'
     '        }\n',
     '        if (*slot != NULL) {\n            free_pool(pools, *slot);\n'
     '        }\n'
     '        if (pool == NULL) {\n            return NULL;\n        }\n'
     '        if (*slot != NULL) {\n        }\n'),
    ('pools', 'memory of a pool is not counted', POOLS,
     '        pools->memory += memory_of(pool);\n',
     ''),
    ('pools', 'memory of a dropped pool is still counted', POOLS,
     '    pools->memory -= memory_of(pool);\n',
     ''),
    ('pools', 'copy forgets what remains at the end', POOLS,
     '*i < count_slots(pool->block_size); ++*i',
     '*i + 1 < count_slots(pool->block_size); ++*i'),
    ('pools', 'the slots get full', POOLS,
     '2 * (pools->npools + 1) > pools->capacity',
     'pools->npools + 1 > pools->capacity'),
    ('intern', 'filenames of different kinds are equal', INTERN,
     '            && item->kind == name->kind\n',
     ''),
    ('intern', 'filenames of different lengths are equal', INTERN,
     '            && item->length == name->length\n',
     ''),
    ('intern', 'text is not aligned', INTERN,
     '_Py_SIZE_ROUND_UP(intern->text.length, 4)',
     'intern->text.length'),
    ('intern', 'room for text is without the alignment', INTERN,
     '&intern->text, offset, size, 1)',
     '&intern->text, intern->text.length, size, 1)'),
    ('intern', 'length of the text is without the alignment', INTERN,
     'intern->text.length = offset + size;',
     'intern->text.length += size;'),
    ('intern', 'frames of another traceback from the second on', INTERN,
     'frame_at(intern, traceback_item(intern, id)->first),\n'
     '           n * sizeof',
     'frame_at(intern, traceback_item(intern, id)->first + 1),\n'
     '           n * sizeof'),
    ('intern', 'one frame too few of another traceback', INTERN,
     'Py_MIN(traceback_item(intern, id)->nframe, max_nframe)',
     'Py_MIN(traceback_item(intern, id)->nframe - 1u, max_nframe)'),
    ('intern', 'frames are taken from where they were', INTERN,
     '    size_t i = intern->frames.length + intern->pending;\n'
     '    if (array_reserve(intern->allocator, &intern->frames, i, n,\n'
     '                      sizeof(_PyTraceFrame)) < 0)\n'
     '    {\n'
     '        return -1;\n'
     '    }\n'
     '    memcpy(frame_at(intern, i),\n'
     '           frame_at(intern, traceback_item(intern, id)->first),\n',
     '    size_t i = intern->frames.length + intern->pending;\n'
     '    const void *source =\n'
     '        frame_at(intern, traceback_item(intern, id)->first);\n'
     '    if (array_reserve(intern->allocator, &intern->frames, i, n,\n'
     '                      sizeof(_PyTraceFrame)) < 0)\n'
     '    {\n'
     '        return -1;\n'
     '    }\n'
     '    memcpy(frame_at(intern, i), source,\n'),
    ('intern', 'the number of all frames is ignored', INTERN,
     '            && item->total_nframe == traceback->total_nframe\n',
     ''),
    ('intern', 'equal hashes are equal tracebacks', INTERN,
     'item->nframe * sizeof(_PyTraceFrame)) == 0)',
     '0) == 0)'),
    ('intern', 'a traceback stays that is in no index', INTERN,
     '    if (index_reserve(intern, index, traceback_hash) < 0\n'
     '        || add_pending(intern, &traceback) < 0)\n',
     '    if (add_pending(intern, &traceback) < 0\n'
     '        || index_reserve(intern, index, traceback_hash) < 0)\n'),
    ('intern', 'the number of all frames wraps around', INTERN,
     '    total_nframe = Py_MIN(total_nframe, UINT16_MAX);\n',
     '    total_nframe = (uint16_t)total_nframe;\n'),
    ('intern', 'a larger index loses its last slot', INTERN,
     'old.slots != NULL && i <= old.mask',
     'old.slots != NULL && i < old.mask'),
    ('intern', 'an index gets full', INTERN,
     'index->used < (index->mask + 1) / 2)',
     'index->used <= index->mask)'),
    ('intern', 'a copy that fails is leaked', INTERN,
     '        _PyTraceIntern_Clear(copy);\n        return -1;\n',
     '        return -1;\n'),
    ('intern', 'a copied traceback keeps the ids of filenames', INTERN,
     '        if (name != NULL\n'
     '            && _PyTraceIntern_Filename(copy, name, text, '
     '&frame.filename) < 0)\n',
     '        uint32_t id_in_copy;\n'
     '        if (name != NULL\n'
     '            && _PyTraceIntern_Filename(copy, name, text, '
     '&id_in_copy) < 0)\n'),
    ('intern', 'an abandoned traceback is continued', INTERN,
     '{\n    intern->pending = 0;\n}',
     '{\n    (void)intern;\n}'),
]


def make(number, source, directory):
    target, name, path, old, new = MUTANTS[number - 1]
    with open(os.path.join(source, path), encoding='utf-8') as file:
        text = file.read()
    if text.count(old) != 1:
        sys.exit(f'mutants.py: {path} has changed, and mutant {number} '
                 f'({name}) no longer fits to it.')
    os.makedirs(directory, exist_ok=True)
    with open(os.path.join(directory, os.path.basename(path)), 'w',
              encoding='utf-8') as file:
        file.write(text.replace(old, new))


def main(args):
    if args == ['list']:
        for number, mutant in enumerate(MUTANTS, 1):
            print(number, mutant[0], mutant[1], sep='\t')
    elif len(args) == 4 and args[0] == 'make':
        make(int(args[1]), args[2], args[3])
    else:
        sys.exit(__doc__.strip())


if __name__ == '__main__':
    main(sys.argv[1:])
