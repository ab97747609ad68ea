// Only videos near the window have a file: browsers do not bear hundreds.

const body = document.getElementById("rows");
const rows = [...body.rows];  // In their first order.
const sources = new Map([...body.querySelectorAll("video")].map((video) => [video, video.getAttribute("src")]));
const [filters, words, below, sort, count] = ["filters", "words", "below", "sort", "count"].map((id) =>
  document.getElementById(id));
const NEAR = "50% 0px";   // Of the window's height, above and below it.
const LONGEST = 0.5;      // Seconds; what lies further apart is a jump, no frame.
const SAMPLED = 20;       // Frames of every video that are looked at, to tell how long one lasts,
const ENOUGH = 12;        // and as many of all videos are believed: a browser leaves out frames when it is busy.
const times = [];         // Seconds between two frames that were shown.
let current = null;       // The row that keys move from.

const near = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) (isIntersecting ? load : unload)(target);
}, { rootMargin: NEAR });

function load(video) {
  if (videos.includes(video)) return;
  videos.push(video);
  video.preload = "auto";
  video.src = sources.get(video);
}

function unload(video) {
  const at = videos.indexOf(video);
  if (at >= 0) videos.splice(at, 1);
  video.removeAttribute("src");
  video.load();
  fit();
}

// Browsers do not tell a video's frame rate: the shortest time between two of its frames does.
function sample(video, left, before = NaN) {
  if (left === 0) return;
  video.requestVideoFrameCallback?.((_, { mediaTime }) => {
    const apart = mediaTime - before;
    if (apart > 0 && apart < LONGEST) times.push(apart);
    fit();
    sample(video, left - 1, mediaTime);
  });
}

function fit() {
  const lengths = videos.map((video) => video.duration).filter(Number.isFinite);
  if (!lengths.length) return;
  const perSecond = Math.round(1 / Math.min(...times));  // Some files have times in whole milliseconds.
  setLength(times.length < ENOUGH ? frame : 1 / perSecond, Math.max(...lengths));
}

function known(event) {
  const video = event.target;
  video.closest("td").classList.remove("unplayable");
  video.style.aspectRatio = `${video.videoWidth} / ${video.videoHeight}`;
  fit();
  if (!player.hidden) return;
  document.documentElement.style.setProperty("--aspect", video.style.aspectRatio);
  startPlayer();
}

const psnr = (cell) => Number(cell.dataset.psnr ?? "Infinity");
const worst = (row) => Math.min(...[...row.cells].map(psnr));
const keyOf = { order: () => 0, worst };

function arrange() {
  const key = keyOf[sort.value] ?? ((row) => psnr(row.cells[sort.value]));
  body.append(...[...rows].sort((one, other) => compare(key(one), key(other))));
}

// Infinities too, whose difference is no number.
const compare = (one, other) => (one < other ? -1 : one > other ? 1 : 0);

function choose() {
  const wanted = words.value.trim().toLowerCase();
  const limit = below.value === "" ? NaN : Number(below.value);
  for (const row of rows) {
    const prompt = row.querySelector(".prompt").textContent.toLowerCase();
    row.hidden = !prompt.includes(wanted) || worst(row) >= limit;
  }
  count.value = `${shown().length} of ${rows.length} shown`;
}

const shown = () => [...body.rows].filter((row) => !row.hidden);

function moveBy(step) {
  const choice = shown();
  const at = choice.indexOf(current);
  const row = choice[at < 0 ? 0 : at + step];
  if (!row) return;
  row.focus({ preventScroll: true });
  row.scrollIntoView({ block: "center" });
}

function stepBy(frames) {
  if (player.hidden || clock.playing) return;
  stand((Math.floor(clock.position / frame + 1e-6) + frames) * frame);
}

const KEYS = {
  " ": () => setPlaying(!clock.playing),
  ArrowUp: () => moveBy(-1),
  ArrowDown: () => moveBy(1),
  ArrowLeft: () => stepBy(-1),
  ArrowRight: () => stepBy(1),
};

function onKey(event) {
  const { target, key } = event;
  const isPlain = !(event.ctrlKey || event.altKey || event.metaKey || event.shiftKey);
  const isTaken = target.closest("input:not([type=range]), button, select, summary, pre") ||
    (target === scrubber && key !== " ");
  if (!isPlain || isTaken || !(key in KEYS)) return;
  event.preventDefault();
  KEYS[key]();
}

for (const [video] of sources) {
  video.controls = false;
  unload(video);
  video.addEventListener("loadedmetadata", known);
  video.addEventListener("error", () => video.closest("td").classList.add("unplayable"));
  near.observe(video);
  view.observe(video);
  sample(video, SAMPLED);
}
for (const row of rows) {
  row.tabIndex = -1;
  row.addEventListener("focus", () => (current = row));
}
for (const input of [words, below]) input.addEventListener("input", choose);
sort.addEventListener("change", arrange);
document.addEventListener("keydown", onKey);
filters.hidden = false;
// A page that is loaded again has its fields as they were left.
arrange();
choose();
