import SwiftUI

@main
struct DigitPadApp: App {
  @StateObject private var program = ProgramModel()

  var body: some Scene {
    WindowGroup {
      TabView {
        PadScreen(program: program).tabItem { Label("Pad", systemImage: "pencil") }
        CameraScreen(program: program).tabItem { Label("Camera", systemImage: "camera") }
        BenchmarkScreen(program: program).tabItem { Label("Benchmark", systemImage: "stopwatch") }
        ProbeScreen().tabItem { Label("Probe", systemImage: "ruler") }
      }
    }
  }
}
