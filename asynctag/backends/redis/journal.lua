-- What every script begins with: the journal, and what is held against it. The loader puts it before each of them.
--
-- The journal is one sorted set. Its members are tags, with the number of their last invalidation as score (+inf: held
-- by an open transaction), softened tags with a "~" before them, tags that are served until replicas have caught up with
-- a "%" before them (+inf: until they are invalidated once more), and a few reserved members that no tag can be
-- (tags hold a "|") whose scores are negative: pruning by score cannot reach them.
--
--   epoch, seq, floor   as in the design          soft     the number of the last soft invalidation
--   run:<who>           the server that wrote it  max_ttl  in microseconds
--   lags                the number of the last lease that ends as a lag in which entries are served
--   noted, unnoted      the newest number of those who note beside a lease what is invalidated meanwhile (BEFORE), and
--                       the newest of those who do not: an older version of this, in another process
--   mark, marked        the number that the journal had at a time, and the time in milliseconds: for pruning
--
-- KEYS[1] is the journal. ARGV[1] is who the server was when the client asked last, ARGV[2] an epoch to take should a new one be needed,
-- ARGV[3] the max_ttl to put down in a new journal (0: none was agreed on yet), ARGV[4] how many tags the journal may
-- hold. Each script's own follow.

local journal = KEYS[1]
local base = string.sub(journal, 1, -8) -- without "journal"
local RUN_SCORE = -9007199254740992
local CHUNK = 1000 -- `unpack` is bounded by Lua's stack
local epoch, seq, floor, soft, noted, unnoted

local function set(member, number)
  redis.call('ZADD', journal, -number, member)
end

-- Who the server is: another after a restart, after it was promoted, and after it took over the data of another.
local function who()
  local run = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
  return run .. string.match(redis.call('INFO', 'replication'), 'master_replid:(%w+)')
end

-- Everything from before is a miss from here on. Numbers, and what open transactions hold, go on.
local function begin_epoch()
  redis.call('ZREMRANGEBYSCORE', journal, RUN_SCORE, RUN_SCORE)
  redis.call('ZADD', journal, RUN_SCORE, 'run:' .. who())
  epoch = tonumber(ARGV[2])
  set('epoch', epoch)
end

local function whole(number, highest)
  return number and number >= 0 and number <= highest and number == math.floor(number)
end

-- A journal that is missing, or that another server wrote (or this one, before a restart), is not to be trusted.
local function open()
  local found = redis.call('ZMSCORE', journal, 'epoch', 'seq', 'floor', 'soft', 'run:' .. ARGV[1], 'noted', 'unnoted')
  epoch = found[1] and -tonumber(found[1])
  seq = found[2] and -tonumber(found[2]) or 0
  floor = found[3] and -tonumber(found[3]) or 0
  soft = found[4] and -tonumber(found[4]) or 0
  noted = found[6] and -tonumber(found[6]) or 0
  unnoted = found[7] and -tonumber(found[7]) or 0
  if not (whole(epoch, 2 ^ 53) and whole(seq, 2 ^ 53) and whole(floor, seq) and whole(soft, seq)) then
    epoch = nil -- numbers that no journal gives: as if it were missing
    seq, floor, soft, noted, unnoted = 0, 0, 0, 0, 0
    redis.call('UNLINK', journal)
  end
  if noted ~= seq then
    unnoted = seq
  end
  local ours = epoch and (found[5] or redis.call('ZSCORE', journal, 'run:' .. who()))
  if not ours then
    begin_epoch()
    set('seq', seq)
    if tonumber(ARGV[3]) > 0 and not redis.call('ZSCORE', journal, 'max_ttl') then
      set('max_ttl', tonumber(ARGV[3]))
    end
  end
end

local function take_number()
  if noted ~= seq then
    set('unnoted', unnoted)
  end
  seq = seq + 1
  noted = seq
  redis.call('ZADD', journal, -seq, 'seq', -seq, 'noted')
  return seq
end

local now
local function now_ms()
  if not now then -- it stands still while a script runs
    local time = redis.call('TIME')
    now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  end
  return now
end

-- The arguments from `first` on.
local function rest(first)
  local found = {}
  for i = first, #ARGV do
    found[#found + 1] = ARGV[i]
  end
  return found
end

-- Give `number` to each of the tags, with `mark` before them; with 'GT' where they have no higher one.
local function number_tags(number, tags, mark, how)
  for first = 1, #tags, CHUNK do
    local pairs_of = {}
    for i = first, math.min(first + CHUNK - 1, #tags) do
      pairs_of[#pairs_of + 1] = number
      pairs_of[#pairs_of + 1] = mark .. tags[i]
    end
    if how then
      redis.call('ZADD', journal, how, unpack(pairs_of))
    else
      redis.call('ZADD', journal, unpack(pairs_of))
    end
  end
end

-- Who holds a tag, and until when. What is no such record is as good as lost. Beside the holders stands the tag's number
-- as it would be if nobody held it, negative, so that an older version takes it for a lease that has ended, and drops it.
local BEFORE = '|before'
local function holders_of(tag)
  local key = base .. 'lease:' .. tag
  local found, holders, before = redis.pcall('HGETALL', key), {}, nil
  if found.err then
    redis.call('UNLINK', key)
    return holders
  end
  for i = 1, #found, 2 do
    if found[i] == BEFORE then
      before = -(tonumber(found[i + 1]) or 1)
    else
      holders[found[i]] = tonumber(found[i + 1])
    end
  end
  return holders, whole(before, 2 ^ 53) and before
end

-- The number of a held tag as it would be if nobody held it; nil if that is not known, or if a lease of it has ended.
local function number_before(tag)
  local holders, before = holders_of(tag)
  for _, ends in pairs(holders) do
    if ends <= now_ms() then
      return
    end
  end
  return next(holders) and before
end

-- The first of the tags whose number is above `number`, and whether it is leased. With `despite`, what is leased counts
-- by its number from before.
local function find_above(number, tags, mark, despite)
  for first = 1, #tags, CHUNK do
    local last = math.min(first + CHUNK - 1, #tags)
    local names = tags
    if mark ~= '' then
      names = {}
      for i = first, last do
        names[i] = mark .. tags[i]
      end
    end
    local scores = redis.call('ZMSCORE', journal, unpack(names, first, last))
    for i = 1, last - first + 1 do
      local score = scores[i]
      if score then
        if score == 'inf' then
          local before = despite and number >= unnoted and number_before(tags[first + i - 1])
          if not before or before > number then
            return tags[first + i - 1], not before
          end
        elseif tonumber(score) > number then
          return tags[first + i - 1], false
        end
      end
    end
  end
end

-- Why an entry is not valid now, and by which tag; nil if it is.
local function why_invalid(its_epoch, its_seq, tags, despite)
  if its_epoch ~= epoch then
    return 'lost'
  end
  if its_seq < floor then
    return 'pruned'
  end
  local tag, leased = find_above(its_seq, tags, '', despite)
  if tag then
    return leased and 'leased' or 'invalidated', tag
  end
end

local function softened_by(its_seq, tags)
  if soft > its_seq then
    return (find_above(its_seq, tags, '~'))
  end
end

-- What stands before the body of an entry (see format.py): its bytes, stamp and tags; nil for what is none of ours.
local FIXED = 56
local function head_of(key)
  local head = redis.pcall('GETRANGE', key, 0, 1023)
  if type(head) ~= 'string' or #head < FIXED or string.sub(head, 1, 3) ~= 'AT\1' then
    return
  end
  local its_epoch, its_seq = struct.unpack('<dd', head, 5)
  local length = struct.unpack('<I4', head, FIXED - 3)
  if FIXED + length > #head then
    head = redis.call('GETRANGE', key, 0, FIXED + length - 1)
    if #head < FIXED + length then
      return
    end
  end
  head = string.sub(head, 1, FIXED + length)
  local good, tags = pcall(cmsgpack.unpack, string.sub(head, FIXED + 1))
  if not good or type(tags) ~= 'table' then
    return
  end
  for _, tag in ipairs(tags) do
    if type(tag) ~= 'string' then
      return
    end
  end
  return head, its_epoch, its_seq, tags
end

-- A tag that is held by nobody: who held it was in a part of the journal that was lost.
local function check_holders(tag)
  local holders, before = holders_of(tag)
  if not next(holders) and redis.call('ZSCORE', journal, tag) == 'inf' then
    begin_epoch()
    redis.call('ZADD', journal, take_number(), tag)
  end
  return holders, before
end

local function hold(tag, holder, ends)
  redis.call('ZADD', journal, '+inf', tag)
  redis.call('HSET', base .. 'lease:' .. tag, holder, ends)
end

-- A tag that stays held was invalidated.
local function number_held(tag, number)
  local _, before = check_holders(tag)
  if before then
    redis.call('HSET', base .. 'lease:' .. tag, BEFORE, -number)
  end
end

-- Invalidate tags. Those that are held stay so.
local function invalidate(number, tags)
  number_tags(number, tags, '', 'GT')
  if redis.call('ZCOUNT', journal, '+inf', '+inf') == 0 then
    return
  end
  for first = 1, #tags, CHUNK do
    local last = math.min(first + CHUNK - 1, #tags)
    for i, score in ipairs(redis.call('ZMSCORE', journal, unpack(tags, first, last))) do
      if score == 'inf' then
        number_held(tags[first + i - 1], number)
      end
    end
  end
end

-- Take the lease of `holder` away, and with it those that have ended. -> whether there were such, whether others hold it
local function let_go(tag, holder)
  local key, now, gone, ended, held = base .. 'lease:' .. tag, now_ms(), {}, false, false
  for one, ends in pairs(check_holders(tag)) do
    if one == holder then
      gone[#gone + 1] = one
    elseif ends <= now then
      gone[#gone + 1] = one
      ended = true
    else
      held = true
    end
  end
  if not held then
    redis.call('UNLINK', key)
  else
    for _, one in ipairs(gone) do
      redis.call('HDEL', key, one)
    end
  end
  return ended, held
end

-- Let go of a tag and invalidate it; where others hold it, it stays held.
local function let_go_of(tag, holder, number)
  local _, held = let_go(tag, holder)
  if held then
    number_held(tag, number)
  else
    redis.call('ZADD', journal, number, tag)
  end
end

-- The same of a lag in which its entries are served. -> whether another such lag, which has ended, ended with it
local function let_go_of_lag(tag, holder)
  local ended, held = let_go('%' .. tag, holder)
  if not held then
    redis.call('ZREM', journal, '%' .. tag)
  end
  return ended
end

-- A lease that has ended still counts for readers. Whoever writes and meets it makes an invalidation of it.
local function settle(tag)
  if string.sub(tag, 1, 1) == '%' then
    tag = string.sub(tag, 2)
    if let_go_of_lag(tag, '') then
      invalidate(take_number(), { tag })
    end
    return
  end
  local ended, held = let_go(tag, '')
  if ended and held then
    number_held(tag, take_number())
  elseif ended then
    redis.call('ZADD', journal, take_number(), tag)
  end
end

-- Until when the first of the lags of these tags lasts, in milliseconds from now: what is stored meanwhile ends then.
-- Those that have ended are invalidations from here on.
local function end_of_lags(tags)
  local lags = redis.call('ZSCORE', journal, 'lags')
  local first
  if not lags then
    return
  end
  for from = 1, #tags, CHUNK do
    local last, shadows = math.min(from + CHUNK - 1, #tags), {}
    for i = from, last do
      shadows[#shadows + 1] = '%' .. tags[i]
    end
    for i, score in ipairs(redis.call('ZMSCORE', journal, unpack(shadows))) do
      if score then
        settle(shadows[i])
        for _, ends in pairs(holders_of(shadows[i])) do
          first = math.min(first or ends, ends)
        end
      end
    end
  end
  return first and first - now_ms()
end

-- Forget what protects nothing, a slice at a time, since a large one would hold up everybody: invalidations that are
-- older than the longest life of an entry, and the oldest where there are too many. Settle leases that nobody touches.
local SLICE, LEASES = 500, 5
local HOUR, MONTH = 3600 * 1000, 30 * 24 * 3600 * 1000
local function prune(added)
  local now, slice = now_ms(), math.max(SLICE, math.min(2 * added, 4 * CHUNK))
  local found = redis.call('ZMSCORE', journal, 'mark', 'marked', 'max_ttl')
  local lifetime = (found[3] and -tonumber(found[3]) / 1000 or MONTH) + HOUR
  local was_floor = floor
  if not found[2] or now - -tonumber(found[2]) >= lifetime then
    if found[1] then
      floor = math.max(floor, -tonumber(found[1]))
    end
    set('mark', seq)
    set('marked', now)
  end
  local dead
  if redis.call('ZCARD', journal) > tonumber(ARGV[4]) then
    dead = redis.call('ZRANGEBYSCORE', journal, '(0', '(+inf', 'LIMIT', 0, slice)
    if #dead > 0 then
      floor = math.max(floor, tonumber(redis.call('ZSCORE', journal, dead[#dead])))
    end
  elseif floor > 0 then
    dead = redis.call('ZRANGEBYSCORE', journal, '(0', floor, 'LIMIT', 0, slice)
  end
  if floor > was_floor then
    set('floor', floor)
  end
  if dead and #dead > 0 then
    redis.call('ZREM', journal, unpack(dead))
  end
  local leased = redis.call('ZCOUNT', journal, '+inf', '+inf')
  if leased > 0 then -- others each time
    for _, tag in ipairs(redis.call('ZRANGEBYSCORE', journal, '+inf', '+inf', 'LIMIT', seq % leased, LEASES)) do
      settle(tag)
    end
  end
end
