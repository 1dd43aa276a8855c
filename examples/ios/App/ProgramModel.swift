import Combine
import Foundation
import LightningPrune
import LightningPruneLogic

/// What the screens show. The actor loads the program once and works away from the main thread; errors are said, in words.
@MainActor
final class ProgramModel: ObservableObject {
  @Published var answer = ""
  @Published var seen = ""
  @Published var statistics = ""
  @Published var isBusy = false
  @Published var reading: Reading?
  /// Width by height of the camera's upright pictures.
  @Published var aspect = 0.75

  private let runner = AsyncRunner()

  func classify(_ image: GrayImage) {
    Task {
      do {
        let (answer, milliseconds) = try await runner.classify(image)
        self.answer = ProgramModel.line(answer, milliseconds)
      } catch {
        answer = error.localizedDescription
      }
    }
  }

  /// Reads a picture of the camera, and returns when it was read.
  func look(_ image: ColorImage) async {
    do {
      let (reading, milliseconds) = try await runner.read(image)
      aspect = Double(image.width) / Double(image.height)
      self.reading = reading
      switch reading {
      case .classes(let answer): seen = ProgramModel.line(answer, milliseconds)
      case .boxes(let boxes): seen = String(format: "%d things   %.2f ms", boxes.count, milliseconds)
      case .regions(_, _, let classes, _):
        seen = String(format: "%d classes   %.2f ms", Set(classes).count, milliseconds)
      }
    } catch {
      seen = error.localizedDescription
    }
  }

  func benchmark(rounds: Int) {
    isBusy = true
    Task {
      do {
        statistics = try await runner.ask { runner in
          let timing = try runner.benchmark(rounds: rounds)
          let manifest = runner.manifest
          return """
            \(manifest.model) on \(manifest.backend), \(manifest.program.sizeBytes) bytes
            \(String(format: "median %.3f ms, spread %.3f ms", timing.median, timing.spread))
            \(String(format: "fastest %.3f ms, 90 %% below %.3f ms", timing.fastest, timing.quantile(0.9)))
            """
        }
      } catch {
        statistics = error.localizedDescription
      }
      isBusy = false
    }
  }

  private static func line(_ answer: Answer, _ milliseconds: Double) -> String {
    String(format: "%@   %.1f %%   %.2f ms", answer.label, Double(100 * answer.confidence), milliseconds)
  }
}
