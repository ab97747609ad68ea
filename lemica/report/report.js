const loaded = (video) => new Promise((resolve) => {
  if (video.readyState > 0 || video.error) return resolve();
  for (const event of ["loadedmetadata", "error"]) video.addEventListener(event, resolve, { once: true });
});

function setUp() {
  for (const video of videos.filter((candidate) => candidate.error)) {
    video.closest(".card").classList.add("unplayable");
    videos.splice(videos.indexOf(video), 1);
  }
  if (!videos.length) return;
  setLength(videos[0].duration / Number(videos[0].dataset.frames), Math.max(...videos.map((video) => video.duration)));
  for (const video of videos) {
    video.controls = false;
    view.observe(video);
  }
  document.addEventListener("keydown", (event) => {
    if (event.key !== " " || event.target.closest("button, select")) return;
    event.preventDefault();
    setPlaying(!clock.playing);
  });
  startPlayer();
}

videos.push(...document.querySelectorAll("video"));
Promise.all(videos.map(loaded)).then(setUp);
