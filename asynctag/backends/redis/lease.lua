-- Hold tags for a transaction, or go on holding them: entries that carry one are invalid, and none is stored.
-- ARGV[4]: the holder, [5]: for how many milliseconds, [6...]: the tags.
-- -> epoch, seq, how many of them the holder had not held

open()
local holder, tags = ARGV[4], rest(6)
local ends = now_ms() + tonumber(ARGV[5])
take_number()
local new = 0
for _, tag in ipairs(tags) do
  lost_holders(tag)
  new = new + redis.call('HSET', base .. 'lease:' .. tag, holder, ends)
end
number_tags('+inf', tags, '', nil)
return { epoch, seq, new }
