// Search in a site opened from the disk: browsers start no worker from file://, so its script runs in a frame instead.
// The generator would otherwise fetch a script for this from a server; the file name is what tells it not to.
if (location.protocol === "file:") {
  window.Worker = class {
    constructor(url) {
      this.waiting = []
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.append(this.frame)
      const inside = this.frame.contentWindow
      inside.postMessage = (data) => setTimeout(() => this.onmessage?.({ data }))
      const script = inside.document.createElement("script")
      script.src = url
      script.onload = () => {
        this.inside = inside
        for (const data of this.waiting.splice(0)) this.postMessage(data)
      }
      script.onerror = () => this.onerror?.(new Event("error", { cancelable: true }))
      inside.document.head.append(script)
    }
    postMessage(data) {
      if (this.inside) setTimeout(() => this.inside?.onmessage?.({ data }))
      else this.waiting.push(data)
    }
    terminate() {
      this.inside = undefined
      this.frame.remove()
    }
  }
}
