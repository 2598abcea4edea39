-- Invalidate tags and let go of them, whether or not they are still held. Those that another holds stay held.
-- ARGV[5]: the holder, [6]: for how many milliseconds more they stay held by it, [7]: "serve" if they are let go of all
-- the same, and invalidated once more then, [8...]: the tags. -> epoch, seq

open()
local holder, lag, serve, tags = ARGV[5], tonumber(ARGV[6]), ARGV[7] == 'serve', rest(8)
local number, ends = take_number(), now_ms() + lag
local lags = redis.call('ZSCORE', journal, 'lags')
for _, tag in ipairs(tags) do
  if lag > 0 and not serve then
    check_holders(tag)
    hold(tag, holder, ends)
    number_held(tag, number)
  else
    let_go_of(tag, holder, number)
  end
  if lag > 0 and serve then
    check_holders('%' .. tag)
    hold('%' .. tag, holder, ends)
  elseif lags and redis.call('ZSCORE', journal, '%' .. tag) then
    let_go_of_lag(tag, holder)
  end
end
if lag > 0 and serve then
  set('lags', number)
end
prune(#tags)
return { epoch, seq }
