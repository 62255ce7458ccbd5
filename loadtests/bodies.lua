-- wrk -s bodies.lua URL -- HEAD TAIL FIRST [NAME: VALUE]...
-- HEAD and TAIL are files. FIRST "same": each request is HEAD. A number: HEAD, a number counted up from FIRST, and TAIL;
-- with an empty TAIL the lines of HEAD from FIRST on, one a request.
-- With COUNT_VERDICTS set, replies are counted by what Cache-Status says of them.
local head, tail, number, lines
local seen = {}

function setup(thread) worker = thread end

local function read(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read("*a")
  file:close()
  return text
end

function init(args)
  head, tail, number = read(args[1]), read(args[2]), tonumber(args[3])
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/json"
  wrk.headers["Authorization"] = "Bearer bench"
  for at = 4, #args do
    local name, value = args[at]:match("^(.-): (.*)$")
    wrk.headers[name] = value
  end
  if args[3] == "same" then
    wrk.body, request = head, nil  -- wrk then makes the request once
  elseif tail == "" then
    lines = {}
    for line in head:gmatch("[^\n]+") do lines[#lines + 1] = line end
  end
end

function request()
  number = number + 1
  if lines then return wrk.format(nil, nil, nil, lines[(number - 1) % #lines + 1]) end
  return wrk.format(nil, nil, nil, head .. number .. tail)
end

-- Called for every reply, so only where the rate is low enough that it does not matter.
if os.getenv("COUNT_VERDICTS") then
  verdicts = ""
  function response(status, headers)
    local status_line = headers["Cache-Status"] or "none"
    local verdict = status_line:match("detail=(%a+)") or "other"
    if status ~= 200 then verdict = "status" .. status end
    seen[verdict] = (seen[verdict] or 0) + 1
    local all = {}
    for name, count in pairs(seen) do all[#all + 1] = name .. "=" .. count end
    verdicts = table.concat(all, " ")
  end
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    'RESULT {"requests": %d, "seconds": %.6f, "p50_ms": %.4f, "p99_ms": %.4f, "bad": %d, "verdicts": "%s"}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout, worker:get("verdicts") or ""))
end
