-- queue/settle.lua — record how a batch of attempts ended, if the session still lives.
-- KEYS  1 lease  2 log  3 stats  4 delayed  5 envelope  6 dead  7 gatestate  8.. streams, named by their place from 1;
--       cancel; results; a block, if it is counted in
-- ARGV  1 session  2 attempts JSON  3 tip  4 stats TTL s  5.. results by version: n, (version, lowest revision)*;
--       floors: n, (stream, id)*; groups: n, (stream, n, id*)*;
--       place of cancel in KEYS; results: n, (which single, ms to keep, JSON tail)*, in the order of their KEYS;
--       singles: n, (stream, id, kind, target stream, due ms, n, (field, value)*)*; counters: n, (field, by)*;
--       if there is more: TTL of the block s, n, (field, by)*
-- Reply {'settled', acked per group…, 1|0 per single…} | {'no_lease'} | {'revoked', (version, min_rev)…} nothing was done
-- Keeps P2 (an outcome takes effect only if its entry was pending: a resend changes nothing), P4 (one EXISTS fences the
-- batch), P1 (written before acknowledged: a write that fails, as on a key of a wrong type, leaves the task pending),
-- P3 (what a flip revoked has no effect after it: looked up in the step that would make the effect).
local lease, log, stats, delayed, envelope, dead, state = unpack(KEYS, 1, 7)
if redis.call('EXISTS', lease) == 0 then return { 'no_lease' } end
local at = 4
local function take()
  at = at + 1
  return ARGV[at]
end
local function stream() return KEYS[7 + tonumber(take())] end

local versions, revs, asked, revoked = {}, {}, {}, { 'revoked' }
for i = 1, tonumber(take()) do
  versions[i], revs[i] = take(), tonumber(take())
  asked[i] = 'min_rev:' .. versions[i]
end
if #asked > 0 then
  for i, min in ipairs(redis.call('HMGET', state, unpack(asked))) do
    min = tonumber(min) -- what is no number was written by hand, and keeps no result out
    if min and revs[i] < min then revoked[#revoked + 1], revoked[#revoked + 2] = versions[i], min end
  end
  if #revoked > 1 then return revoked end
end

local floors = {}
for _ = 1, tonumber(take()) do
  local key = stream()
  floors[#floors + 1] = { key, take() }
end
local out, effective, complete = { 'settled' }, 0, true
for _ = 1, tonumber(take()) do
  local key, n = stream(), tonumber(take())
  local acked = redis.call('XACK', key, 'workers', unpack(ARGV, at + 1, at + n))
  at = at + n
  effective, complete = effective + acked, complete and acked == n
  out[#out + 1] = acked
end
local cancel, keeps, cancelled = tonumber(take()), {}, {}
for i = 1, tonumber(take()) do
  local single, ms, tail = tonumber(take()), take(), take()
  keeps[single] = { KEYS[cancel + i], ms, tail }
end
cancel = KEYS[cancel]

-- The mark of a task, if it speaks of this one: an id that was enqueued again later is a new task.
local function marked(fields, entry)
  local score = tonumber(redis.call('ZSCORE', cancel, value_of(fields, 'id') or entry) or '0')
  local enqueued = tonumber(value_of(fields, 'enqueued_at') or string.match(entry, '^%d+')) or 0
  return score ~= 0 and enqueued * 1000 <= math.abs(score) and score
end

local function keep(single, state)
  local it = keeps[single]
  if not it then return end
  local t = redis.call('TIME')
  local json = string.format('{"state":"%s","at_ms":%.0f,', state, t[1] * 1000 + math.floor(t[2] / 1000)) .. it[3]
  redis.call('SET', it[1], json, 'PX', it[2])
end

for single = 1, tonumber(take()) do
  local key, id, kind, target, due, n = stream(), take(), take(), tonumber(take()), take(), tonumber(take())
  local acked = #redis.call('XPENDING', key, 'workers', id, id, 1, ARGV[1])
  if acked == 1 then
    local entry = redis.call('XRANGE', key, id, id)[1]
    if entry then
      local overrides = {}
      for i = at + 1, at + 2 * n, 2 do overrides[ARGV[i]] = ARGV[i + 1] end
      local fields = with(entry[2], overrides)
      local mark = kind ~= 'move' and kind ~= 'done' and marked(fields, id)
      -- A failing attempt of a cancelled task is its last, whether or not its worker knew of the mark; and without
      -- a mark nothing is cancelled, whatever the worker believed.
      if kind == 'cancelled' and not mark then
        kind = 'move'
      elseif mark and mark > 0 then
        kind = 'cancelled'
      end
      if kind == 'done' or kind == 'cancelled' then
        local task = value_of(fields, 'id') or id
        if kind == 'cancelled' then cancelled[#cancelled + 1] = task .. '=' .. id end
        keep(single, kind)
        redis.call('ZREM', cancel, task)
      elseif kind == 'retry' then
        local task = value_of(fields, 'id') or id
        -- Foreign producers may give two tasks one id: neither replaces the other.
        if redis.call('HEXISTS', envelope, task) == 1 then task = task .. '@' .. id end
        redis.call('ZADD', delayed, due, task)
        redis.call('HSET', envelope, task, pack(fields))
      elseif kind == 'dead' then
        add(dead, fields)
        keep(single, overrides.dead_reason == 'expired' and 'expired' or 'dead')
      else
        local to = KEYS[7 + target]
        -- A lane that somebody deleted comes back with its group, or nobody could read it.
        if redis.call('EXISTS', to) == 0 then redis.call('XGROUP', 'CREATE', to, 'workers', '0', 'MKSTREAM') end
        add(to, fields)
      end
    end
    redis.call('XACK', key, 'workers', id)
    -- What is done, or cancelled, is kept where it lies for a while.
    if entry and kind ~= 'done' and kind ~= 'cancelled' then redis.call('XDEL', key, id) end
  end
  at = at + 2 * n
  effective, complete = effective + acked, complete and acked == 1
  out[#out + 1] = acked
end
if effective > 0 then
  -- What is done is done: a counter that somebody made a text of must not keep it out of the log.
  local counters = tonumber(take())
  for _ = 1, counters do
    local name, by = take(), take()
    if complete then redis.pcall('HINCRBY', stats, name, by) end
  end
  if counters > 0 and complete then redis.call('EXPIRE', stats, ARGV[4]) end
  if at < #ARGV and complete then
    local block, ttl = KEYS[#KEYS], take()
    for _ = 1, tonumber(take()) do
      local name, by = take(), take()
      redis.pcall('HINCRBY', block, name, by)
    end
    redis.call('EXPIRE', block, ttl)
  end
  if ARGV[2] ~= '' or #cancelled > 0 then
    local row = { 'kind', 'settled', 'session', ARGV[1], 'attempts', ARGV[2] ~= '' and ARGV[2] or '[]', 'tip', ARGV[3],
      'acked', complete and 'all' or table.concat(out, ' ', 2) }
    if #cancelled > 0 then row[#row + 1], row[#row + 2] = 'cancelled', table.concat(cancelled, ' ') end
    redis.call('XADD', log, '*', unpack(row))
  end
end
for _, floor in ipairs(floors) do redis.call('XTRIM', floor[1], 'MINID', '~', floor[2], 'LIMIT', 1000) end
return out
