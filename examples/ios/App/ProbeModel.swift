import Combine
import Foundation
import LightningPrune
import LightningPruneLogic

/// What the probe's screen shows. The folder is copied to the app's documents, and the results are copied from there.
@MainActor
final class ProbeModel: ObservableObject {
  @Published var told = ""
  @Published var isBusy = false

  func run() {
    isBusy = true
    Task {
      do {
        told = try await ProbeModel.written { percent in
          // what comes late must not take the place of the results
          Task { @MainActor in if self.isBusy { self.told = "\(percent) %" } }
        }
      } catch {
        told = error.localizedDescription
      }
      isBusy = false
    }
  }

  private nonisolated static func written(_ progress: @Sendable (Int) -> Void) async throws -> String {
    guard let documents = FileManager.default.urls(for: .documentDirectory, in: .userDomainMask).first else {
      throw ModelError("the app has no documents")
    }
    var shown = -1
    let results = try ProbeRunner.run(documents.appendingPathComponent("probe"), device: machine()) { done, all in
      if 100 * done / all > shown {
        shown = 100 * done / all
        progress(shown)
      }
    }
    let target = documents.appendingPathComponent("probe.json")
    try results.json().write(to: target, options: .atomic)
    return "\(results.nanoseconds.count) programs timed, \(results.failed.count) failed\n\(target.lastPathComponent)"
  }

  /// What the system calls the device: iPhone16,1.
  private nonisolated static func machine() -> String {
    var system = utsname()
    uname(&system)
    return withUnsafeBytes(of: &system.machine) { bytes in
      String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
    }
  }
}
