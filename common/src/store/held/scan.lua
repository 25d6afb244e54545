-- held/scan.lua — what is delivered and not settled, with the key its version is chosen by, without payloads.
-- KEYS  1 stream
-- ARGV  1 from, as XPENDING takes it  2 most entries  3 most bytes looked at  4 salt of the stream
-- Reply {last entry looked at or '', µs since 1970, (entry, session, ms held, task, key or '', attempts made)*}; empty without a group
-- Keeps P10 (bounded in count and bytes).
local ok, pending = pcall(redis.call, 'XPENDING', KEYS[1], 'workers', ARGV[1], '+', ARGV[2])
local t = redis.call('TIME')
local bytes, out = 0, { '', string.format('%d%06d', t[1], t[2]) }
for _, p in ipairs(ok and pending or {}) do
  local entry = redis.call('XRANGE', KEYS[1], p[1], p[1])[1]
  if entry then
    local fields = entry[2]
    local id = value_of(fields, 'id') or derived_id(entry[1], ARGV[4])
    out[#out + 1] = { p[1], p[2], p[3], string.sub(id, 1, 64), string.sub(value_of(fields, 'key') or '', 1, 256),
      tonumber(value_of(fields, 'attempt') or '') or 0 }
    bytes = bytes + size(fields)
  end
  out[1] = p[1]
  if bytes > tonumber(ARGV[3]) then break end
end
return out
