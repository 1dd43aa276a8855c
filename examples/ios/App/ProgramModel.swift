import Combine
import Foundation
import LightningPrune
import LightningPruneLogic

/// Loads the program once and works with it away from the main thread; what goes wrong is said, in words.
final class ProgramModel: ObservableObject {
  @Published var answer = ""
  @Published var statistics = ""
  @Published var isBusy = false

  private let queue = DispatchQueue(label: "org.lightningprune.digitpad")
  private var runner: ProgramRunner?

  func classify(_ image: GrayImage) {
    ask({ runner in
      let result = try runner.classify(image)
      let percent = Double(100 * result.answer.confidence)
      return String(format: "%@   %.1f %%   %.2f ms", result.answer.label, percent, result.milliseconds)
    }, show: { self.answer = $0 })
  }

  func benchmark(rounds: Int) {
    isBusy = true
    ask({ runner in
      let timing = try runner.benchmark(rounds: rounds)
      let manifest = runner.manifest
      return """
        \(manifest.model) on \(manifest.backend), \(manifest.program.sizeBytes) bytes
        \(String(format: "median %.3f ms, spread %.3f ms", timing.median, timing.spread))
        \(String(format: "fastest %.3f ms, 90 %% below %.3f ms", timing.fastest, timing.quantile(0.9)))
        """
    }, show: { text in
      self.statistics = text
      self.isBusy = false
    })
  }

  private func ask(_ work: @escaping (ProgramRunner) throws -> String, show: @escaping (String) -> Void) {
    queue.async {
      let text: String
      do {
        let runner = try self.runner ?? ProgramRunner.load()
        self.runner = runner
        text = try work(runner)
      } catch {
        text = error.localizedDescription
      }
      DispatchQueue.main.async { show(text) }
    }
  }
}
