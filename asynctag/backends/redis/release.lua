-- Let go of tags and invalidate them, whether or not they are still held. Those that another holds stay held.
-- ARGV[4]: the holder, [5...]: the tags. -> epoch, seq

open()
local holder, tags = ARGV[4], rest(5)
local number = take_number()
for _, tag in ipairs(tags) do
  lost_holders(tag)
  local key = base .. 'lease:' .. tag
  redis.call('HDEL', key, holder)
  if redis.call('EXISTS', key) == 0 then
    redis.call('ZADD', journal, number, tag)
  end
end
return { epoch, seq }
