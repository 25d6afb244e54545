#!lua flags=allow-oom
-- queue/count.lua — count what a stream has up to an id, a bounded step at a time.
-- KEYS  1 stream
-- ARGV  1 from, as XRANGE has it  2 to  3 most entries
-- Reply {'counted', n, last id counted ('' when that was all)}
-- Keeps P10: bounded by the caller, who knows how large entries are; only the number leaves Redis.
local page = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[2], 'COUNT', ARGV[3])
return { 'counted', #page, #page == tonumber(ARGV[3]) and page[#page][1] or '' }
