// The viewer takes its colours once, when it is made: those that the reader prefers.
if (matchMedia("(prefers-color-scheme: dark)").matches) {
  const viewer = document.querySelector("openapi-explorer");
  viewer.setAttribute("bg-color", "#17181a");
  viewer.setAttribute("text-color", "#e4e6e8");
  viewer.setAttribute("primary-color", "#5cc4d6");
  viewer.setAttribute("secondary-color", "#5cc4d6");
}
