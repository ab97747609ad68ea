"use strict";

// One clock drives all videos. It runs only while every video in view is ready, and each video is held to it: a small
// lag is worked off by playing a little faster or slower, a large one by seeking.

const videos = [...document.querySelectorAll("video")];
const [player, button, scrubber, time, rate] = ["player", "play", "scrubber", "time", "rate"].map((id) =>
  document.getElementById(id));
const inView = new Set();
const clock = { position: 0, playing: false, tickedAt: 0 };
const CATCH_UP = 4;     // A lag shrinks by this share of itself every second.
const SHORT = 1;        // Videos of fewer seconds are over before one has looked: they begin at a quarter of the pace.
const SEEK_FRAMES = 3;  // A lag of more frames than this is not worked off but jumped over.
let frame = 1 / 24;     // Seconds.
let duration = 0;

const loaded = (video) => new Promise((resolve) => {
  if (video.readyState > 0 || video.error) return resolve();
  for (const event of ["loadedmetadata", "error"]) video.addEventListener(event, resolve, { once: true });
});

function setPlaying(playing) {
  clock.playing = playing;
  button.textContent = playing ? "Pause" : "Play";
}

// Where a video belongs: the middle of a frame when it stands, and on its last frame when others are longer.
function placeOf(video) {
  const middle = (Math.floor(clock.position / frame + 1e-6) + 0.5) * frame;
  return Math.min(clock.playing ? clock.position : middle, video.duration - frame / 2);
}

function hold(video) {
  const place = placeOf(video);
  const running = clock.playing && inView.has(video) && place === clock.position;
  if (running === video.paused) {
    if (running) video.play().catch((error) => error.name === "NotAllowedError" && setPlaying(false));
    else video.pause();
  }
  if (video.seeking || !inView.has(video)) return;
  const lag = place - video.currentTime;
  if (Math.abs(lag) > (running ? SEEK_FRAMES * frame : frame / 4)) video.currentTime = place;
  const catchUp = Math.abs(lag) < frame / 4 ? 1 : Math.min(2, Math.max(0.5, 1 + CATCH_UP * lag));
  video.playbackRate = Number(rate.value) * catchUp;
}

function tick(now) {
  const seconds = (now - clock.tickedAt) / 1000;
  clock.tickedAt = now;
  const ready = [...inView].every((video) => !video.seeking && video.readyState >= HTMLMediaElement.HAVE_CURRENT_DATA);
  if (clock.playing && ready) clock.position = (clock.position + seconds * Number(rate.value)) % duration;
  videos.forEach(hold);
  show();
  requestAnimationFrame(tick);
}

function show() {
  const index = Math.floor(clock.position / frame + 1e-6);
  scrubber.value = index;
  const text = `${clock.position.toFixed(2)} s, frame ${index + 1} of ${Math.round(duration / frame)}`;
  if (time.textContent !== text) {
    time.textContent = text;
    scrubber.setAttribute("aria-valuetext", text);
  }
}

function setUp() {
  for (const video of videos.filter((candidate) => candidate.error)) {
    video.closest(".card").classList.add("unplayable");
    videos.splice(videos.indexOf(video), 1);
  }
  if (!videos.length) return;
  frame = videos[0].duration / Number(videos[0].dataset.frames);
  duration = Math.max(...videos.map((video) => video.duration));
  scrubber.max = Math.round(duration / frame) - 1;
  if (duration < SHORT) rate.value = "0.25";
  player.hidden = false;

  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) inView[entry.isIntersecting ? "add" : "delete"](entry.target);
  });
  for (const video of videos) {
    video.controls = false;
    observer.observe(video);
  }

  button.addEventListener("click", () => setPlaying(!clock.playing));
  scrubber.addEventListener("input", () => {
    setPlaying(false);
    clock.position = Number(scrubber.value) * frame;
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== " " || event.target.closest("button, select")) return;
    event.preventDefault();
    setPlaying(!clock.playing);
  });

  // report.html#t=0.5 opens the page standing at half a second.
  const start = /^#t=([\d.]+)$/.exec(location.hash);
  if (start) clock.position = Math.min(Number(start[1]), duration - frame);
  setPlaying(!start && !matchMedia("(prefers-reduced-motion: reduce)").matches);
  requestAnimationFrame((now) => {
    clock.tickedAt = now;
    tick(now);
  });
}

Promise.all(videos.map(loaded)).then(setUp);
