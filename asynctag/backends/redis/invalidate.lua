-- Make every entry that carries one of the tags invalid, or stale. Whatever the number of entries.
-- ARGV[4]: "hard" or "soft", [5]: how many tags the journal may hold, [6...]: the tags. -> epoch, seq

open()
local tags = rest(6)
local number = take_number()
if ARGV[4] == 'soft' then
  number_tags(number, tags, '~', nil)
  set('soft', number)
else
  number_tags(number, tags, '', 'GT') -- what a transaction holds stays held
end

-- Pruning, a slice at a time: a large one would hold up everybody. An invalidation older than the longest life of an
-- entry protects nothing.
local SLICE = 500
local HOUR, MONTH = 3600 * 1000, 30 * 24 * 3600 * 1000
local now = now_ms()
local found = redis.call('ZMSCORE', journal, 'mark', 'marked', 'max_ttl')
local lifetime = (found[3] and -tonumber(found[3]) / 1000 or MONTH) + HOUR
local was_floor = floor
if not found[2] or now - -tonumber(found[2]) >= lifetime then
  if found[1] then
    floor = math.max(floor, -tonumber(found[1]))
  end
  set('mark', number)
  set('marked', now)
end
local dead
if redis.call('ZCARD', journal) > tonumber(ARGV[5]) then
  dead = redis.call('ZRANGEBYSCORE', journal, '(0', '(+inf', 'LIMIT', 0, SLICE)
  if #dead > 0 then
    floor = math.max(floor, tonumber(redis.call('ZSCORE', journal, dead[#dead])))
  end
elseif floor > 0 then
  dead = redis.call('ZRANGEBYSCORE', journal, '(0', floor, 'LIMIT', 0, SLICE)
end
if floor > was_floor then
  set('floor', floor)
end
if dead and #dead > 0 then
  redis.call('ZREM', journal, unpack(dead))
end
for _, tag in ipairs(redis.call('ZRANGEBYSCORE', journal, '+inf', '+inf', 'LIMIT', 0, 5)) do
  settle(tag)
end
return { epoch, seq }
