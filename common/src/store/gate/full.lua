-- gate/full.lua — stop a queue whose dead letters are at their limit, until a person resumes it.
-- KEYS  1 gate  2 gatestate  3 history  4 versions  5 dead  6 limits
-- ARGV  1 the limit  2 the field of the limits hash it was read from, or ''
-- Reply {'held'} | {'paused'} it was so already | {'fine'} below the limit, or the limit has just been changed | {'unsealed'}
-- Keeps P10 (nothing more dies, nothing is trimmed), P9 (who comes second finds the queue paused and writes nothing).
local cur = seal_pending('redis-cli')
if not cur then return { 'unsealed' } end
local readable, raw = pcall(redis.call, 'HGET', KEYS[6], 'dead') -- a key of another type says nothing
if (readable and raw or '') ~= ARGV[2] then return { 'fine' } end
if redis.call('XLEN', KEYS[5]) < tonumber(ARGV[1]) then return { 'fine' } end
if cur.paused == '1' then return { 'paused' } end
local new = {}
for _, name in ipairs(FIELDS) do new[name] = cur[name] end
new.paused = '1'
write(cur, new, gate_hash(), { source = 'limit',
  why = 'dead letters at their limit of ' .. ARGV[1] .. ': requeue or discard some, then resume' })
return { 'held' }
