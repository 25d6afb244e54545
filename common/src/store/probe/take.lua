#!lua flags=allow-oom
-- probe/take.lua — take the open question, if it is for a version that I have: one worker answers for all.
-- KEYS  1 probe
-- ARGV  1 session  2 µs that whoever asked listens  3 µs that whoever took it has  4.. my versions
-- Reply {'none'} | {'wait'} another has taken it | {'yours', question, version, payload*}
-- Keeps P10: a sample is fetched once, however many workers there are. Whoever took it may die: then the next takes it.
local probe, session = KEYS[1], ARGV[1]
local f = redis.call('HMGET', probe, 'id', 'version', 'at', 'n', 'answer', 'taken', 'taken_at')
local id, version, at, n, answer, taken, taken_at = unpack(f, 1, 7)
if not id or answer then return { 'none' } end
local mine = false
for i = 4, #ARGV do mine = mine or ARGV[i] == version end
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
if not mine or math.abs(now - (tonumber(at or '') or 0)) > tonumber(ARGV[2]) then return { 'none' } end
if taken and taken ~= session and math.abs(now - (tonumber(taken_at or '') or 0)) < tonumber(ARGV[3]) then return { 'wait' } end
redis.call('HSET', probe, 'taken', session, 'taken_at', string.format('%.0f', now))
local out = { 'yours', id, version }
for i = 1, tonumber(n) do out[#out + 1] = redis.call('HGET', probe, 'p' .. i) or '' end
return out
