#!lua flags=allow-oom
-- queue/prune.lua — let go of settled entries behind one that is still pending, a bounded step.
-- KEYS  1 stream
-- ARGV  1 after this entry  2 up to this one  3 most entries
-- Reply {'pruned', n, last entry looked at, more (1|0)}
-- Keeps P1 (only what the group has delivered and nobody holds), P10 (one long attempt must not pin all that lies behind).
local stream, most = KEYS[1], tonumber(ARGV[3])
local function parts(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end
local function later(a, b)
  local ams, aseq = parts(a)
  local bms, bseq = parts(b)
  return ams > bms or (ams == bms and aseq > bseq)
end

local upto, delivered = ARGV[2], nil
for _, info in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
  local group = {}
  for i = 1, #info, 2 do group[info[i]] = info[i + 1] end
  if group.name == 'workers' then delivered = group['last-delivered-id'] end
end
-- A person may have set the group back: what is to be delivered again stays.
if not delivered then return { 'pruned', 0, upto, 0 } end
if later(upto, delivered) then upto = delivered end
local page = redis.call('XRANGE', stream, '(' .. ARGV[1], upto, 'COUNT', most)
if #page == 0 then return { 'pruned', 0, upto, 0 } end
local last = page[#page][1]
local pending = redis.call('XPENDING', stream, 'workers', page[1][1], last, 2 * most)
-- Entries deleted by hand may be pending, too: then only what was seen to the end of the list is judged.
if #pending == 2 * most then last = pending[#pending][1] end
local held = {}
for _, p in ipairs(pending) do held[p[1]] = true end
local gone = {}
for _, entry in ipairs(page) do
  if not held[entry[1]] and not later(entry[1], last) then gone[#gone + 1] = entry[1] end
end
if #gone > 0 then redis.call('XDEL', stream, unpack(gone)) end
return { 'pruned', #gone, last, #page == most and 1 or 0 }
